"""The predictor as files for servers and devices, each checked before it is there."""
