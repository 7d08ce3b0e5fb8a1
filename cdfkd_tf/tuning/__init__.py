"""Searches for better settings with Keras Tuner; a trial is an ordinary run."""
