"""Classes of pictures, by one exported file and without the folder of its run.

cdfkd-tf classify student_int8.tflite a.png b.jpg

Takes what `--export_formats` writes, and folders of pictures, too. A device needs no
more than the one page experiments/edge/classify.py of the repository.
"""

import argparse
import pathlib
import sys

from cdfkd_tf.export.predict import predict
from cdfkd_tf.tools import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser("classify", __doc__)
    parser.add_argument("model", help="exported file or folder")
    parser.add_argument("pictures", nargs="+", help="image files, or folders of them")
    parser.add_argument("--output", help="a CSV file to write, too")
    return parser.run(_classify, arguments)


def _classify(options: argparse.Namespace) -> None:
    predict(
        options.pictures,
        model=options.model,
        directory=pathlib.Path(),
        output=pathlib.Path(options.output) if options.output else None,
    )


if __name__ == "__main__":
    sys.exit(main())
