"""Command line: `python main.py --flagfile=experiments/<dataset>/<run>.flags`."""

import sys

from cdfkd_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
