"""Fetches and prepares one data set, on a machine with network.

python -m cdfkd_tf.tools.prepare_data --dataset=cifar100 --data_dir=DIR
"""

import argparse
import sys

from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.tools import door


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir", default="", help="TFDS folder to write to")
    options = parser.parse_args(arguments)
    quiet_tensorflow()
    return door.run(lambda: _prepare(options))


def _prepare(options: argparse.Namespace) -> None:
    from cdfkd_tf.data.prepare import prepared_builder
    from cdfkd_tf.data.specs import spec_of

    builder = prepared_builder(spec_of(options.dataset), options.data_dir)
    splits = builder.info.splits.items()
    counts = ", ".join(f"{split.num_examples:,} {name}" for name, split in splits)
    print(f"{options.dataset} is prepared in {builder.data_dir}: {counts} images.")


if __name__ == "__main__":
    sys.exit(main())
