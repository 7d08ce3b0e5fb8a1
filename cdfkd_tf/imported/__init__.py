"""Networks of other frameworks as Keras models: ONNX files, PyTorch programs."""
