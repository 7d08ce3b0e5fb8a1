"""What the report shows beyond the numbers of results.json: `observations.json`."""

from typing import Any

import keras
import numpy as np

from cdfkd_tf.assembly import SAMPLE_SEED, Assembly
from cdfkd_tf.networks.aggregators import header_weights
from cdfkd_tf.workdir import write_json

_INVENTED = 512


def observe(
    assembly: Assembly,
    predictor: keras.Model,
    answers: dict[Any, np.ndarray],
    truth: np.ndarray | None,
) -> None:
    """Writes the run's `observations.json`.

    Args:
        assembly: what the run is made of.
        predictor: of the run.
        answers: logits or probabilities on the evaluation images, of at least
            `predictor` and `ensemble`.
        truth: the images' labels; None: the teachers' answers stand for them.
    """
    num_classes = assembly.spec.num_classes
    rows = answers["ensemble"].argmax(-1) if truth is None else truth
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (rows, answers["predictor"].argmax(-1)), 1)
    weights = [
        header_weights(predictor, pixels) for pixels, _ in assembly.evaluation_batches
    ]
    by_image = np.concatenate(weights)
    by_class = [
        by_image[rows == label].mean(axis=0).round(4).tolist()
        if (rows == label).any()
        else None
        for label in range(num_classes)
    ]
    table = {
        "classes": list(assembly.class_names),
        "confusion_rows": "teachers" if truth is None else "labels",
        "confusion": confusion.tolist(),
        "header_weights": by_image.mean(axis=0).round(4).tolist(),
        "header_weights_by_class": by_class,
        "invented_classes": _invented(assembly, predictor),
    }
    write_json(assembly.workdir.observations, table)


def _invented(assembly: Assembly, predictor: keras.Model) -> list[int] | None:
    """How many of the generator's images show each class, in the student's eyes."""
    if not assembly.method.generator:
        return None
    pixels = assembly.unlabelled_pixels(_INVENTED, SAMPLE_SEED)
    classes = predictor.predict(pixels, batch_size=256, verbose=0).argmax(-1)
    return np.bincount(classes, minlength=assembly.spec.num_classes).tolist()
