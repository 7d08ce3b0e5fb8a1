"""Package metadata."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.*)"', (ROOT / "cdfkd_tf/__init__.py").read_text()
).group(1)
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "tf2onnx>=1.17"]

setup(
    name="cdfkd_tf",
    version=VERSION,
    description="Several image classifiers into one small network, without their data.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["cdfkd_tf", "cdfkd_tf.*"]),
    package_data={"cdfkd_tf.report": ["page.css"]},
    python_requires=">=3.10",
    install_requires=[
        "absl-py>=2.1",
        "ai-edge-litert>=2.1",  # the interpreter that devices use: checks exports
        "importlib_resources",  # tensorflow-datasets 4.9.10 forgets to ask for it
        "flatbuffers>=24.3",  # packs TFLite files
        "keras>=3.15,<3.16",
        "keras-tuner>=1.4.8",  # --action=search
        "matplotlib>=3.9",  # charts of report.html
        "numpy>=2",
        "pillow",
        "scikit-learn",  # brings the digits, and stratified splits
        "scipy",  # rank correlations
        "tensorboard>=2.19",  # tf.summary writes through it
        "tensorflow>=2.21,<2.22",
        "tensorflow-datasets>=4.9.9",
    ],
    extras_require={
        "onnx": ONNX,  # --export_formats=onnx
        "torch": ["torch>=2.4", "safetensors>=0.4"],  # tools/import_torch.py
        "bench": [
            "torch>=2.4"
        ],  # experiments/benchmarks, tests/parity/record_float64.py
        "test": [
            *ONNX,
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.*",
            "safetensors>=0.4",
        ],
    },
    entry_points={"console_scripts": ["cdfkd-tf=cdfkd_tf.cli:main"]},
)
