"""A search from Python: `cdfkd_tf.search(teachers, space)`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner

from cdfkd_tf.api import FILES, Teacher, load_teachers, request_of
from cdfkd_tf.tuning.run import search as run_search
from cdfkd_tf.tuning.space import read_space
from cdfkd_tf.tuning.summary import Summary


def search(
    teachers: Sequence[Teacher],
    space: str | Mapping[str, Any] | keras_tuner.HyperModel = "weights",
    *,
    image_shape: tuple[int, int, int] | None = None,
    workdir: str | pathlib.Path | None = None,
    **options: Any,
) -> Summary:
    """Looks for settings with which several classifiers are distilled best.

    Every trial is a run like `distill`'s. It is judged by accuracy on held-out real
    samples (`real_samples`, with a data set), else by agreement with the teachers on
    invented images.

    Args:
        teachers: Keras models, which are saved into the workdir, or their files.
        space: `weights`, `schedule`, `student`; a file; a table such as
            `{"student_learning_rate": "0.01..0.2 log", "student_width": [0.25, 0.5]}`;
            or a `HyperModel` of yours whose `build(hp)` returns a table of options.
        image_shape: as in `distill`.
        workdir: where the search goes on from, if it was interrupted; None: a
            temporary folder.
        **options: as in `distill`; `max_trials=10`, `tuner="random"`, `"bayesian"` or
            `"hyperband"`.

    Returns:
        The trials, best first; `best["options"]` go into `distill`.

    Raises:
        RequestError: (a `ValueError`) what does not fit together, in one sentence.
        RunError: (a `RuntimeError`) no trial finished.
    """
    if isinstance(space, (str, pathlib.Path)):
        options["search_space"], space = str(space), None
    models = load_teachers(teachers)
    config = request_of(teachers, models, image_shape, workdir, options)
    files = []
    for index, (teacher, model) in enumerate(zip(teachers, models)):
        file = pathlib.Path(config.workdir) / "given" / f"teacher_{index}.keras"
        if not isinstance(teacher, FILES):
            file.parent.mkdir(parents=True, exist_ok=True)
            model.save(file)
        files.append(str(teacher) if isinstance(teacher, FILES) else str(file))
    config = request_of(files, models, image_shape, config.workdir, options)
    if isinstance(space, Mapping):
        space = read_space(space, config, "space")
    return run_search(config, space)
