"""Every option of a run, once: its name, default, help text and allowed values.

What is distilled stands in `options.py`, how it is done here. The defaults are the
published CIFAR-100 recipe; what differs for another data set stands in
`experiments/<dataset>/base.flags` or the run's own flagfile.
"""

import dataclasses
from typing import Any

from cdfkd_tf.limits import EXPORT_FORMATS, check
from cdfkd_tf.options import Subject, option

_SHIPPED = ("saved_model", "tflite_float32", "tflite_int8")


@dataclasses.dataclass(frozen=True)
class RunConfig(Subject):
    """One run, completely. Derive variants with `dataclasses.replace`.

    Raises:
        RequestError: if a value is outside its range; the message names the flag.
    """

    epochs: int = option("schedule", 300, "Epochs of the distillation.")
    steps_per_epoch: int = option(
        "schedule",
        50,
        "Iterations per epoch: student rounds, then one update of the generator; "
        "with kd: as many student updates.",
    )
    evaluate_every: int = option(
        "schedule", 1, "Epochs between accuracies; 0 reads no data set at all."
    )
    batch_size: int = option("schedule", 256, "Images per update.")
    student_learning_rate: float = option("schedule", 0.1, "SGD, momentum 0.9.")
    nesterov: bool = option("schedule", False, "Nesterov momentum for the student.")
    generator_learning_rate: float = option("schedule", 1e-3, "Adam.")
    generator_beta1: float = option("schedule", 0.9, "Adam's decay of the gradient.")
    schedule: str = option(
        "schedule",
        "steps",
        "Learning rates: a tenth at each milestone, a half cosine to 0, or constant.",
        ("steps", "cosine", "constant"),
    )
    generator_schedule: str = option(
        "schedule",
        "",
        "The same for the generator alone; empty: as --schedule.",
        ("", "steps", "cosine", "constant"),
    )
    milestones: tuple[int, ...] = option(
        "schedule", (100, 200), "Epochs at which the rates drop to a tenth."
    )
    clip_gradients: float = option(
        "schedule",
        0.0,
        "Largest norm of a player's gradient, longer ones are shortened; 0: any.",
    )
    keep_best: bool = option(
        "schedule",
        False,
        "Keep the student of the epoch that agreed best with the teachers on invented "
        "images, not the last one.",
    )

    aggregator: str = option(
        "aggregator",
        "mean",
        "How headers become one answer; all but mean are learned.",
        ("mean", "weights", "attention", "feature_attention"),
    )
    real_samples: int = option(
        "aggregator",
        0,
        "Labelled real training images the aggregator may use; 0: it learns from "
        "invented ones, towards the teachers' mean.",
    )
    aggregator_epochs: int = option("aggregator", 100, "Passes over them.")
    aggregator_learning_rate: float = option("aggregator", 0.01, "Adam.")

    strategy: str = option(
        "running",
        "auto",
        "Devices that share a batch; mirrored: all GPUs of this machine (without any, "
        "all logical CPUs); multi_worker: those of all processes in TF_CONFIG; auto: "
        "mirrored where there are several GPUs.",
        ("auto", "one_device", "mirrored", "multi_worker"),
    )
    worker_timeout: float = option(
        "running", 300.0, "Seconds that multi_worker waits for the other processes."
    )
    dtype_policy: str = option(
        "running",
        "float32",
        "Arithmetic of the networks; losses, norms and statistics are always float32. "
        "mixed_float16 scales the losses and skips updates that overflow.",
        ("float32", "mixed_bfloat16", "mixed_float16"),
    )
    low_memory: bool = option(
        "running",
        False,
        "Pass teachers one at a time through the generator's update: less memory, one "
        "more pass through each.",
    )
    jit_compile: str = option(
        "running",
        "auto",
        "Compile each update with XLA; auto: on one GPU, where nothing asks for the "
        "same bits. On CPUs it is slower.",
        ("auto", "true", "false"),
    )
    deterministic: str = option(
        "running",
        "auto",
        "Same seed, same bits; auto: where it is free, on CPUs.",
        ("auto", "true", "false"),
    )
    resume: bool = option(
        "running", True, "Go on where this workdir stopped; --noresume starts again."
    )
    checkpoint_every: int = option(
        "running", 1, "Epochs between checkpoints; 0 keeps none."
    )
    checkpoint_minutes: float = option(
        "running",
        10.0,
        "Minutes between checkpoints within an epoch; 0: none but when interrupted.",
    )
    keep_checkpoints: int = option(
        "running", 2, "How many of the last checkpoints stay on disk."
    )
    report: bool = option(
        "running", True, "Write report.html at the end of the pipeline."
    )
    profile: bool = option(
        "running",
        False,
        "Write a TensorBoard profile of three iterations to WORKDIR/logs.",
    )
    debug: bool = option("running", False, "Show the traceback of an error.")

    export_formats: tuple[str, ...] = option(
        "export",
        _SHIPPED,
        f"Comma list of formats to write, of {', '.join(EXPORT_FORMATS)}; empty: none.",
    )
    int8_finetune_steps: int = option(
        "export",
        0,
        "Updates of the int8 file's weights under simulated rounding, on invented "
        "images; 0: calibration alone.",
    )

    predict_input: str = option("predict", "", "Image file or folder to classify.")
    predict_model: str = option(
        "predict",
        "",
        "Exported file or folder; empty: the smallest that WORKDIR holds.",
    )
    predict_output: str = option(
        "predict", "", "CSV file; empty: WORKDIR/predictions.csv."
    )
    show_header_weights: bool = option(
        "predict", False, "Also how much each header counts for each image."
    )

    max_trials: int = option(
        "search", 10, "Runs to try; 0, with hyperband: as many as it plans."
    )
    tuner: str = option(
        "search",
        "random",
        "How settings are chosen; hyperband gives few epochs to many and goes on with "
        "the best.",
        ("random", "bayesian", "hyperband"),
    )
    search_space: str = option(
        "search",
        "weights",
        "What to vary: weights, schedule, student, or a file of lines such as "
        "`student_learning_rate = 0.01..0.2 log` and `student_width = 0.25 | 0.5`.",
    )

    def __post_init__(self):
        if self.dataset == "none":  # nothing there to measure on
            object.__setattr__(self, "evaluation_split", "none")
        check(self)

    def option_dict(self) -> dict[str, Any]:
        """Field names and values, as JSON can hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def flag_lines(self) -> str:
        """The text of a flagfile that repeats this run."""
        lines = []
        for name, value in self.option_dict().items():
            if value is None:
                continue
            if isinstance(value, bool):
                value = str(value).lower()
            elif isinstance(value, list):
                value = ",".join(str(item) for item in value)
            lines.append(f"--{name}={value}\n")
        return "".join(lines)
