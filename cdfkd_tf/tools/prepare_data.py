"""Fetches and prepares one data set, on a machine with network.

cdfkd-tf prepare-data --dataset=cifar100 --data_dir=DIR
"""

import argparse
import sys

from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.tools import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser("prepare-data", __doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir", default="", help="TFDS folder to write to")
    return parser.run(_prepare, arguments)


def _prepare(options: argparse.Namespace) -> None:
    spec = spec_of(options.dataset)
    quiet_tensorflow()
    from cdfkd_tf.data.prepare import prepared_builder

    builder = prepared_builder(spec, options.data_dir)
    splits = builder.info.splits.items()
    counts = ", ".join(f"{split.num_examples:,} {name}" for name, split in splits)
    print(f"{spec.name} is prepared in {builder.data_dir}: {counts} images.")


if __name__ == "__main__":
    sys.exit(main())
