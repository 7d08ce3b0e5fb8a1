"""Sizes and latencies of all five formats, and int8 calibrated in three ways.

    python experiments/edge/measure.py --student=resnet18
    python experiments/edge/measure.py --runs=runs/repeat/quickstart-seed0,...

The first exports a 32-pixel student with random weights: size and speed do not depend
on what was learned. The second goes through finished runs and measures their int8 file
calibrated on generated images, on real ones, and fine-tuned on generated ones.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow  # noqa: E402

quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from cdfkd_tf.assembly import Assembly  # noqa: E402
from cdfkd_tf.export.checking import Reference  # noqa: E402
from cdfkd_tf.export.exporting import export_checked  # noqa: E402
from cdfkd_tf.export.step import calibration_pool  # noqa: E402
from cdfkd_tf.limits import EXPORT_FORMATS  # noqa: E402

from cdfkd_tf.config import RunConfig  # noqa: E402
from cdfkd_tf.export import metadata  # noqa: E402
from cdfkd_tf.export.calibration import calibration_pixels  # noqa: E402
from cdfkd_tf.export.finetuning import finetune_int8  # noqa: E402
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor  # noqa: E402
from cdfkd_tf.networks.students import build_student  # noqa: E402
from cdfkd_tf.workdir import Workdir, read_json  # noqa: E402

_HEADERS, _CLASSES, _STEPS = 3, 100, 200


def main() -> None:
    """Prints the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", help="backbone of a student with random weights")
    parser.add_argument("--runs", help="comma list of finished workdirs")
    arguments = parser.parse_args()
    if arguments.student:
        random_weights(arguments.student)
    if arguments.runs:
        calibrations(arguments.runs.split(","))


def random_weights(backbone: str) -> None:
    """Exports an untrained student and prints a row per format."""
    keras.utils.set_random_seed(0)
    shape = (32, 32, 3)
    student = build_student(backbone, shape, _CLASSES, _HEADERS)
    aggregator = build_aggregator("attention", student)
    aggregator.set_weights([0.1 * np.ones(w.shape) for w in aggregator.get_weights()])
    predictor = build_predictor(student, aggregator, (0.5,) * 3, (0.25,) * 3)
    pixels = np.random.default_rng(0).uniform(size=(64, *shape)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        entries = _export(predictor, EXPORT_FORMATS, folder, pixels, [(pixels, None)])
    print("| format | bytes | ms per image | operators | largest difference |")
    print("|---|---|---|---|---|")
    for entry in entries:
        print(
            f"| {entry['format']} | {entry['bytes']:,} | {entry['latency_ms']:.2f} | "
            f"{entry['operators'] or ''} | {entry['max_abs_difference']:.1e} |"
        )


def calibrations(folders: list[str]) -> None:
    """Prints int8 accuracy and agreement by kind of calibration, over the runs."""
    rows: dict[str, list[dict]] = {}
    ratios = []
    for folder in folders:
        workdir = Workdir(folder)
        known = read_json(workdir.config)
        lists = {name: tuple(v) for name, v in known.items() if isinstance(v, list)}
        config = RunConfig(**{**known, **lists})
        assembly = Assembly(config, workdir)
        predictor = assembly.load(workdir.predictor, "fit_aggregator")
        pool = calibration_pool(assembly)
        generated = calibration_pixels(pool, predictor, 512, config.seed)
        real = assembly.images.some_training_pixels(512, [config.seed, 0])

        def finetune(model, pool=pool, generated=generated, seed=config.seed):
            finetune_int8(model, pool, generated, steps=_STEPS, seed=seed)

        ways = {
            "generated, balanced over classes": (generated, None),
            "the first 512 generated": (_with_ramp(pool[:512]), None),
            "real training images": (_with_ramp(real), None),
            f"generated, {_STEPS} steps of fine-tuning": (generated, finetune),
        }
        for name, (images, change) in ways.items():
            with tempfile.TemporaryDirectory() as scratch:
                (entry,) = _export(
                    predictor,
                    ("tflite_int8",),
                    scratch,
                    images,
                    assembly.evaluation_batches,
                    finetune=change,
                )
            rows.setdefault(name, []).append(entry)
        results = read_json(workdir.results)
        teachers = sum(cost["latency_ms"] for cost in results["teacher_costs"])
        by_name = {entry["format"]: entry for entry in results["exports"]}
        ratios.append(teachers / by_name["tflite_int8"]["latency_ms"])
    print("| int8 calibrated on | accuracy | agrees with Keras | largest difference |")
    print("|---|---|---|---|")
    for name, entries in rows.items():
        accuracy, agreement, difference = (
            _mean(entries, key)
            for key in ("accuracy", "agreement", "max_abs_difference")
        )
        print(f"| {name} | {accuracy:.2%} | {agreement:.2%} | {difference:.3f} |")
    print(f"\nTeachers' latency over int8 student's: {_range(ratios)}")


def _export(predictor, formats, folder, calibration, batches, **more):
    return export_checked(
        predictor,
        formats,
        pathlib.Path(folder),
        calibration=calibration,
        reference=Reference.of(predictor, batches),
        description=metadata.describe(
            dataset="",
            method="",
            student="",
            class_names=[str(i) for i in range(predictor.output_shape[-1])],
            image_shape=predictor.input_shape[1:],
        ),
        **more,
    )


def _with_ramp(images):
    ramp = np.linspace(0, 1, images[0].size, dtype="float32")
    return np.concatenate([images, ramp.reshape(1, *images.shape[1:])])


def _mean(entries, key):
    return statistics.fmean(entry[key] for entry in entries)


def _range(values):
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
