"""Data-free distillation of several image classifiers into one small network.

Networks saved by this package consist of plain Keras layers: their files load with
Keras alone.
"""

__version__ = "0.1.0"
