"""Three teachers and a folder of images: `cdfkd-tf make-example`, in the repository.

python experiments/own_teachers/make_teachers.py --folder=/tmp/own
"""

import sys

from cdfkd_tf.tools.make_example import main

if __name__ == "__main__":
    sys.exit(main())
