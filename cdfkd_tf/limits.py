"""Ranges of the numeric options of `config.py`."""

AT_LEAST = {
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
    "int8_finetune_steps": 0,
}
POSITIVE = (
    "teacher_learning_rate",
    "teacher_width",
    "temperature",
    "student_width",
    "generator_width",
    "student_learning_rate",
    "generator_learning_rate",
    "aggregator_learning_rate",
)
