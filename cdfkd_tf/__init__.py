"""Data-free distillation of several image classifiers into one small network.

Networks saved by this package consist of plain Keras layers: their files load with
Keras alone.
"""

import importlib
import os
import platform
import sys

# Before TensorFlow is imported, by whom ever: its greetings hide our own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Its faster kernels, which TensorFlow leaves off on processors without AVX-512 VNNI:
# with AVX2 they more than halve a student's step.
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
__version__ = "0.2.0"

_PUBLIC = {
    "distill": "cdfkd_tf.api",
    "Distillation": "cdfkd_tf.api",
    "RunConfig": "cdfkd_tf.config",
    "from_torch": "cdfkd_tf.imported.torch_programs",
    "search": "cdfkd_tf.api",
    "teacher_model": "cdfkd_tf.api",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    """Public names, imported when first used: TensorFlow takes seconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cdfkd_tf' has no attribute {name!r}")
    if "tensorflow" not in sys.modules:
        from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow

        quiet_tensorflow()
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
