"""`python -m cdfkd_tf`: the command line."""

import sys

from cdfkd_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
