"""Real images through TensorFlow Datasets, and noise."""
