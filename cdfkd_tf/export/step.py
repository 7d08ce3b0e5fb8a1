"""The export step of a run: which images, which labels, what goes into results.json."""

import pathlib
from typing import Any

import keras
import numpy as np

from cdfkd_tf.assembly import CALIBRATION_SEED, Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.export import metadata
from cdfkd_tf.export.calibration import calibration_pixels
from cdfkd_tf.export.checking import Reference
from cdfkd_tf.export.exporting import export_checked
from cdfkd_tf.export.finetuning import finetune_int8

_CALIBRATION = 512  # images that fix the ranges of the int8 file
_POOL, _AT_ONCE = 1024, 256  # images they are chosen from


def export_run(
    config: RunConfig,
    assembly: Assembly,
    predictor: keras.Model,
    directory: pathlib.Path,
) -> list[dict[str, Any]]:
    """Writes and checks the formats that `config` asks for.

    Args:
        config: the request.
        assembly: what the run is made of.
        predictor: of the run, image in [0, 1] to probabilities.
        directory: of the files; created if missing.

    Returns:
        The `exports` of results.json.
    """
    if not config.export_formats:
        return []
    spec = assembly.spec
    description = metadata.describe(
        dataset=spec.name,
        method=config.method,
        student=config.student,
        class_names=assembly.class_names,
        image_shape=spec.image_shape,
        shorter_side=spec.shorter_side,
    )
    calibration, finetune = np.empty(0), None
    if "tflite_int8" in config.export_formats:
        pool = calibration_pool(assembly)
        seed = config.seed
        calibration = calibration_pixels(pool, predictor, _CALIBRATION, seed)
        if config.int8_finetune_steps:
            finetune = _finetuning(pool, calibration, config)
    return export_checked(
        predictor,
        config.export_formats,
        directory,
        calibration=calibration,
        reference=Reference.of(predictor, assembly.evaluation_batches),
        description=description,
        finetune=finetune,
    )


def calibration_pool(assembly: Assembly) -> np.ndarray:
    """Images in [0, 1] from the trained generator, and from earlier ones if kept.

    Where the method has no generator: real training images.
    """
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + 100 * _POOL // _AT_ONCE, 100)
    images = [assembly.unlabelled_pixels(_AT_ONCE, seed) for seed in seeds]
    earlier = assembly.workdir.checkpoints / "earlier_images.npz"
    if assembly.method.generator and earlier.exists():
        with np.load(earlier, allow_pickle=False) as kept:
            pixels = assembly.spec.denormalise(np.concatenate(kept["images"]))
        images.append(pixels)
    return np.clip(np.concatenate(images), 0, 1).astype("float32")


def _finetuning(pool: np.ndarray, calibration: np.ndarray, config: RunConfig):
    def finetune(model: keras.Model) -> None:
        before, after = finetune_int8(
            model,
            pool,
            calibration,
            steps=config.int8_finetune_steps,
            seed=config.seed,
        )
        print(
            f"int8 fine-tuning: divergence from float32 on held-out invented images "
            f"{before:.4f} before, {after:.4f} after."
            + ("" if after < before else " No gain: the weights stay.")
        )

    return finetune
