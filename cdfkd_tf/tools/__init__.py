"""Small programs around a run: `python -m cdfkd_tf.tools.<name> --help`."""
