"""Times this package through `fit` on one case; prints a line of JSON.

    python -m experiments.benchmarks.engine_loop --case=wrn --policy=float32

A process of its own, so that its memory is its own. `--profile=FILE` writes what each
kind of operation costs.
"""

import argparse
import json
import time

from experiments.benchmarks.cases import (
    CASES,
    changed,
    peak_megabytes,
    resident_megabytes,
)


def config_of(case, **more):
    """The options of the run that `case` describes."""
    from cdfkd_tf.config import RunConfig
    from cdfkd_tf.networks.pixel_ranges import NORMALISED

    options = {
        "method": "cdfkd_mfs",
        "dataset": "none",
        "image_shape": case.image,
        "num_classes": case.classes,
        "teachers": tuple(f"teacher {index}" for index in range(case.num_teachers)),
        "teacher_input": (NORMALISED,),
        "teacher_output": "logits",
        "student_loss": {"feature": case.feature_weight},
        "batch_size": case.batch_size,
        "latent_size": case.latent_size,
        "student_steps": case.student_steps,
        **case.options,
    }
    return RunConfig(**{**options, **more})


def build(case, config):
    """The distiller that `fit` trains, with fresh teachers in memory."""
    from cdfkd_tf.data.images import RealImages
    from cdfkd_tf.distillation.build import build_distiller
    from cdfkd_tf.networks.classifiers import build_classifier
    from cdfkd_tf.teachers.build import build_teachers, find_spec

    spec = find_spec(config, list)
    models = [
        build_classifier(case.teacher, case.image, case.classes)
        for _ in range(case.num_teachers)
    ]
    teachers = build_teachers(config, spec, config.teachers, models)
    images = RealImages(spec, config.data_dir, config.evaluation_split)
    return build_distiller(config, spec, teachers, images)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--policy", default="float32")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--profile")
    parser.add_argument("--option", action="append", default=[], help="name=value")
    parser.add_argument("--teachers", type=int, help="how many")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--side", type=int, help="of the images, in pixels")
    arguments = parser.parse_args()
    case = changed(
        CASES[arguments.case],
        num_teachers=arguments.teachers,
        batch_size=arguments.batch_size,
        side=arguments.side,
    )
    from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow

    quiet_tensorflow()
    import keras

    from cdfkd_tf.runtime.precision import make_deterministic

    keras.utils.set_random_seed(0)
    imported = resident_megabytes()
    started = time.monotonic()
    more = dict(option.split("=", 1) for option in arguments.option)
    config = config_of(case, dtype_policy=arguments.policy, **more)
    make_deterministic(config.deterministic)
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.before = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            seconds.append(time.perf_counter() - self.before)
            if batch == 0:
                self.first_step = time.monotonic() - started
            if arguments.profile and batch == 1:
                tf.profiler.experimental.start(arguments.profile)

    import tensorflow as tf

    clock = Clock()
    distiller = build(case, config)
    distiller.fit(
        distiller.source.dataset(0),
        steps_per_epoch=arguments.iterations + 1,
        callbacks=[clock],
        shuffle=False,
        verbose=0,
    )
    if arguments.profile:
        tf.profiler.experimental.stop()
    print(
        json.dumps(
            {
                "seconds": seconds[1:],
                "first_step": clock.first_step,
                "peak_megabytes": peak_megabytes(),
                "imported_megabytes": imported,
            }
        )
    )


if __name__ == "__main__":
    main()
