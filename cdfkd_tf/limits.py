"""What values the options of a run can have."""

import dataclasses
import math
from typing import Any

from cdfkd_tf.errors import RequestError

EXPORT_FORMATS = (
    "saved_model",
    "onnx",
    "tflite_float32",
    "tflite_float16",
    "tflite_dynamic",
    "tflite_int8",
)
TEACHER_INPUTS = ("auto", "normalised", "0..1", "0..255", "-1..1")

_AT_LEAST = {
    "seed": 0,
    "num_teachers": 1,
    "teacher_epochs": 1,
    "teacher_batch_size": 1,
    "latent_size": 1,
    "student_rounds": 1,
    "epochs": 1,
    "steps_per_epoch": 1,
    "evaluate_every": 0,
    "batch_size": 2,  # BatchNorm statistics of one image are no statistics
    "real_samples": 0,
    "aggregator_epochs": 1,
    "checkpoint_every": 0,
    "clip_gradients": 0,
    "checkpoint_minutes": 0,
    "keep_checkpoints": 1,
    "int8_finetune_steps": 0,
    "max_trials": 0,
}
_POSITIVE = (
    "teacher_learning_rate",
    "teacher_width",
    "temperature",
    "student_width",
    "generator_width",
    "student_learning_rate",
    "worker_timeout",
    "generator_learning_rate",
    "aggregator_learning_rate",
)


# What else would fail later, in words of libraries.
_AT_MOST = {
    "seed": 4_000_000,  # seeds of teachers are thousands of it, in 32 bits
    "teacher_width": 64,
    "student_width": 64,
    "generator_width": 64,
}
_LARGEST, _LARGEST_WHOLE, _SMALLEST = 1e30, 10**9, 1e-30  # safely float32 and int32


def check(config: Any) -> None:
    """Refuses values that no run can have.

    Args:
        config: a `RunConfig`.

    Raises:
        RequestError: naming the flag, what it takes and what it got.
    """
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"--{name} must be a finite number; got {value}.")
        if isinstance(value, int | float):
            most = _LARGEST_WHOLE if isinstance(value, int) else _LARGEST
            most = _AT_MOST.get(name, most)
            if abs(value) > most:
                raise RequestError(f"--{name} must be at most {most:g}; got {value}.")
    for name, limit in _AT_LEAST.items():
        if getattr(config, name) < limit:
            raise RequestError(
                f"--{name} must be at least {limit}; got {getattr(config, name)}."
            )
    for name in _POSITIVE:
        if getattr(config, name) < _SMALLEST:
            raise RequestError(
                f"--{name} must be positive; got {getattr(config, name)}."
            )
    for field in dataclasses.fields(config):
        choices, value = field.metadata["choices"], getattr(config, field.name)
        if choices and value not in choices:
            known = ", ".join(choice for choice in choices if choice)
            raise RequestError(f"--{field.name} must be one of {known}; got {value!r}.")
    for name in config.export_formats:
        if name not in EXPORT_FORMATS:
            raise RequestError(
                f"--export_formats knows {', '.join(EXPORT_FORMATS)}; got {name!r}."
            )
    if not 0 <= config.generator_beta1 < 1:
        raise RequestError(
            f"--generator_beta1 must be in [0, 1); got {config.generator_beta1}."
        )
    if config.real_samples == 1:
        raise RequestError(
            "--real_samples=1 cannot be learned from: a part of them is held out. "
            "Give 0, or at least 2."
        )
    endless = not config.max_trials and config.tuner != "hyperband"
    if config.action == "search" and endless:
        raise RequestError(
            f"--max_trials=0 leaves the number to --tuner=hyperband; got --tuner="
            f"{config.tuner}. Give at least 1."
        )
    for value in config.teacher_input:
        if value not in TEACHER_INPUTS:
            raise RequestError(
                f"--teacher_input knows {', '.join(TEACHER_INPUTS)}; got {value!r}."
            )
    if config.strategy == "multi_worker" and config.action == "search":
        raise RequestError(
            "--action=search shares trials, not batches, between processes: see "
            "README.md. Leave --strategy=multi_worker out."
        )
    if config.strategy == "multi_worker" and not config.resume:
        raise RequestError(
            "--noresume cannot be told to several processes: one that is started again "
            "would delete what all have done. Delete WORKDIR/checkpoints yourself."
        )
    _check_images(config)


def _check_images(config: Any) -> None:
    """The options that belong to --dataset=folder and none, and only to them."""
    own = config.dataset in ("folder", "none")
    if config.image_shape and not own:
        raise RequestError(
            f"--image_shape belongs to --dataset=folder or none; --dataset="
            f"{config.dataset} has its own. Leave it out."
        )
    if config.image_folder and config.dataset != "folder":
        raise RequestError(
            f"--image_folder belongs to --dataset=folder; got --dataset="
            f"{config.dataset}."
        )
    if config.dataset == "none":
        if not config.image_shape:
            raise RequestError(
                "--dataset=none needs --image_shape=height,width,channels: the images "
                "that the student will see."
            )
        if not config.teachers:
            raise RequestError(
                "--dataset=none has no images to train teachers on. Name them with "
                "--teachers=a.keras,b.keras."
            )
        if config.real_samples:
            raise RequestError(
                f"--real_samples={config.real_samples}, but --dataset=none has no real "
                "images. Use --dataset=folder, or --real_samples=0."
            )
    elif config.num_classes:
        raise RequestError(
            f"--num_classes belongs to --dataset=none; --dataset={config.dataset} "
            "tells it. Leave it out."
        )
