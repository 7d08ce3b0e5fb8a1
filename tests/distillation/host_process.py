"""The command line in double precision, and a signal to itself at a step of the run.

    SIGNAL_AT=9:5 python -m tests.distillation.host_process --flag=value ...

A process of its own: several hosts must be asked for before TensorFlow starts.
"""

import contextlib
import os
import sys

import keras

keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")

from cdfkd_tf import cli
from cdfkd_tf.distillation import build as engine
from cdfkd_tf.distillation.checkpoints import TrainingState

engine.dtype_policy = lambda name: contextlib.nullcontext()  # as set above
number, step = map(int, os.environ.get("SIGNAL_AT", "0:0").split(":"))
end_of_step = TrainingState.on_train_batch_end


def signalling(self, batch, logs=None):
    if self.epoch * self.steps_per_epoch + self._skipped + batch + 1 == step:
        os.kill(os.getpid(), number)
    end_of_step(self, batch, logs)


TrainingState.on_train_batch_end = signalling

if __name__ == "__main__":
    sys.exit(cli.main(["main.py", *sys.argv[1:]]))
