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

from cdfkd_tf.config import RunConfig  # noqa: E402
from cdfkd_tf.data.specs import plain_spec  # noqa: E402
from cdfkd_tf.export.format import FORMATS  # noqa: E402
from cdfkd_tf.export.run import describe, export  # noqa: E402
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor  # noqa: E402
from cdfkd_tf.networks.students import build_student  # noqa: E402
from cdfkd_tf.pipeline.steps import Run  # noqa: E402
from cdfkd_tf.workdir import Workdir, read_json  # noqa: E402

_HEADERS, _CLASSES = 3, 100
_CALIBRATION, _STEPS = 512, 200


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
        formats = [row.name for row in FORMATS.values() if not row.extra]
        entries = _export(
            predictor, formats, folder, lambda *_: pixels, [(pixels, None)]
        )
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
        run = Run(RunConfig(**read_json(workdir.config)))
        predictor = run.network("predictor", "fit_aggregator")
        generated = run.calibration_pool

        def first(count, seed, generated=generated):
            return generated(count, seed)[:_CALIBRATION]

        def real(count, seed, run=run):
            return run.real_images.some_training_pixels(_CALIBRATION, [seed, 0])

        ways = {
            "generated, balanced over classes": (generated, 0),
            f"the first {_CALIBRATION} generated": (first, 0),
            "real training images": (real, 0),
            f"generated, {_STEPS} steps of fine-tuning": (generated, _STEPS),
        }
        for name, (images, steps) in ways.items():
            with tempfile.TemporaryDirectory() as scratch:
                (entry,) = _export(
                    predictor,
                    ["tflite_int8"],
                    scratch,
                    images,
                    run.evaluation_batches,
                    int8_finetune_steps=steps,
                    seed=run.config.seed,
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


def _export(predictor, formats, folder, images, batches, **more):
    num_classes = predictor.output_shape[-1]
    spec = plain_spec("none", predictor.input_shape[1:], num_classes)
    names = [str(label) for label in range(num_classes)]
    description = describe(spec, names, method="", student="")
    return export(
        predictor,
        formats,
        pathlib.Path(folder),
        batches=batches,
        calibration_pool=images,
        description=description,
        **more,
    )


def _mean(entries, key):
    return statistics.fmean(entry[key] for entry in entries)


def _range(values):
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
