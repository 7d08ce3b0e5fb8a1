"""Accuracy after minutes: where the images of a distillation come from.

python experiments/better_images/compare.py --rows=cdfkd_plus,noise --minutes=1,2

Three teachers of three makes learn the first 10,000 training images of Fashion-MNIST,
or all of another --dataset; each row distils them into the student that
`--student=auto` chooses, without these images, in so many minutes. Measured on the
whole test split; of Fashion-MNIST, --split=validation takes 4,000 other training
images, to choose settings by. Runs stand in processes of their
own, one after the other, on an otherwise idle machine. What is in table.json is not
done again, so that a call can be stopped and go on, and another can add rows, minutes
or seeds. After each run all that is there of the split is written: table.json, table.md
and minutes.png in --output.

--data_dir is TFDS's folder, or one with the four files of Fashion-MNIST
(train-images-idx3-ubyte.gz ...). Rows with pictures need --pictures, a folder or
builtin.
"""

import argparse
import functools
import gzip
import json
import multiprocessing
import pathlib
import time

import keras
import numpy as np
from keras import layers

import cdfkd_tf
from cdfkd_tf.data.prepare import open_examples
from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.distillation.methods import METHODS

HERE = pathlib.Path(__file__).parent
# Data set -> training images of the teachers, and in how many passes they learn them:
# enough for the moving statistics of their BatchNormalizations.
SEEN = {"fashion_mnist": 10_000, "mnist_5k": 4_000, "digits": 1_437}
PASSES = {"fashion_mnist": 12, "mnist_5k": 24, "digits": 80}
CHOSEN_BY = 4_000  # of --split=validation, others than the teachers'
FILES = {"train": "train", "test": "t10k"}
PICTURES = {"transfer_images": "PICTURES"}
# What all rows share, where their method brings something for larger networks.
SMALL = {"student": "auto", "epochs": 20, "batch_size": 64}
ROWS = {
    "cdfkd_plus": {},
    "cdfkd_plus+generator": {"images": ("generated", "procedural")},
    "cdfkd_plus+pictures": {"images": ("procedural", "pictures"), **PICTURES},
    "pictures": {"images": ("pictures",), **PICTURES},
    "patches": {"method": "patches", **PICTURES},
    **{
        name: {"method": name, **SMALL}
        for name, row in METHODS.items()
        if name not in ("cdfkd_plus", "patches") and "real" not in row.images
    },
}


def arrays(split: str, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, height, width, 1)`, 0 to 255, and labels of `train` or `test`."""
    folder = pathlib.Path(options.data_dir or ".")
    images = folder / f"{FILES[split]}-images-idx3-ubyte.gz"
    if options.dataset == "fashion_mnist" and images.exists():
        labels = folder / f"{FILES[split]}-labels-idx1-ubyte.gz"
        read = functools.partial(np.frombuffer, dtype="uint8")
        with gzip.open(images) as x, gzip.open(labels) as y:
            pixels = read(x.read(), offset=16).reshape(-1, 28, 28, 1)
            return pixels, read(y.read(), offset=8).astype("int64")
    examples = open_examples(spec_of(options.dataset), options.data_dir)
    pairs = [
        (np.asarray(examples.decode(one["image"])), int(one["label"]))
        for one in examples.read(split)
    ]
    x, y = map(np.stack, zip(*pairs))
    return np.rint(255 * x), y


def convolved(tensor, width: int, stride: int = 1):
    """Convolution, BatchNormalization, ReLU."""
    options = {"padding": "same", "use_bias": False}
    tensor = layers.Conv2D(width, 3, stride, **options)(tensor)
    return layers.ReLU()(layers.BatchNormalization()(tensor))


def pooled(image):
    """Two convolutions with pooling and a wide Dense layer; pixels in [0, 1]."""
    tensor = layers.Rescaling(1 / 255)(image)
    for width in (24, 48):
        tensor = layers.MaxPooling2D()(convolved(tensor, width))
    tensor = layers.Dense(64)(layers.Flatten()(tensor))
    tensor = layers.ReLU()(layers.BatchNormalization()(tensor))
    return layers.Dense(10)(layers.Dropout(0.3)(tensor))


def residual(image):
    """Two residual blocks; pixels in [-1, 1], answers are probabilities."""
    tensor = convolved(layers.Rescaling(1 / 127.5, -1)(image), 16)
    for width in (32, 64):
        tensor = convolved(tensor, width, 2)
        tensor = layers.add([tensor, convolved(tensor, width)])
    tensor = layers.GlobalAveragePooling2D()(tensor)
    return layers.Dense(10, activation="softmax")(tensor)


def separable(image):
    """Depthwise convolutions with ELU; pixels in [0, 1]."""
    tensor = layers.Rescaling(1 / 255)(image)
    tensor = layers.Conv2D(32, 5, 2, padding="same")(tensor)
    tensor = layers.Activation("elu")(layers.BatchNormalization()(tensor))
    for width in (64, 96):
        tensor = layers.DepthwiseConv2D(3, padding="same")(tensor)
        tensor = layers.BatchNormalization()(layers.Conv2D(width, 1)(tensor))
        tensor = layers.MaxPooling2D()(layers.Activation("elu")(tensor))
    tensor = layers.GlobalAveragePooling2D()(tensor)
    return layers.Dense(10)(layers.Dense(64, activation="elu")(tensor))


def train_teachers(options: argparse.Namespace) -> list[str]:
    """Files of the three teachers, trained where they are missing."""
    files, folder, seen = [], options.folder, SEEN[options.dataset]
    if options.dataset != "fashion_mnist":
        folder = folder / options.dataset
    for seed, make in enumerate((pooled, residual, separable)):
        file = folder / f"{make.__name__}.keras"
        files.append(str(file))
        if file.exists():
            continue
        x, y = (part[:seen] for part in arrays("train", options))
        keras.utils.set_random_seed(seed)
        image = keras.Input(x.shape[1:])
        model = keras.Model(image, make(image))
        passes = options.teacher_epochs or PASSES[options.dataset]
        decay = keras.optimizers.schedules.CosineDecay(2e-3, passes * -(-seen // 64))
        model.compile(
            keras.optimizers.Adam(decay),
            keras.losses.SparseCategoricalCrossentropy(from_logits=make != residual),
        )
        model.fit(x.astype("float32"), y, batch_size=64, epochs=passes, verbose=2)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(file)
    return files


def measured_on(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of `test`, or of `validation`: training images, too."""
    if options.split == "test":
        return arrays("test", options)
    seen = SEEN[options.dataset]
    x, y = arrays("train", options)
    return x[seen : seen + CHOSEN_BY], y[seen : seen + CHOSEN_BY]


def name_of_split(options: argparse.Namespace) -> str:
    """What the tables call what is measured on; plainly `test` of Fashion-MNIST."""
    if options.dataset == "fashion_mnist":
        return options.split
    return f"{options.dataset} {options.split}"


class Table:
    """What was measured, kept in a file: run's name -> numbers."""

    def __init__(self, file: pathlib.Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self.rows = json.loads(file.read_text()) if file.exists() else {}

    def complete(self, name: str, run, arguments: tuple) -> None:
        """Calls `run` in a process of its own, if there is nothing of that name."""
        if name in self.rows:
            return
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            self.rows[name] = pool.apply(run, arguments)
        print(name, self.rows[name], flush=True)
        self._file.write_text(json.dumps(self.rows, indent=1) + "\n")


def one_run(row: str, minutes: float, seed: int, options) -> dict[str, float]:
    """Distils once; accuracies and agreement in [0, 1], seconds of the distillation."""
    files = train_teachers(options)
    given = {
        name: options.pictures if value == "PICTURES" else value
        for name, value in ROWS[row].items()
    }
    begun = time.monotonic()
    result = cdfkd_tf.distill(files, minutes=minutes, seed=seed, verbose=2, **given)
    seconds = time.monotonic() - begun
    x, y = measured_on(options)
    found = result.evaluate(x.astype("uint8"), y)
    return {
        "accuracy": found["student"]["accuracy"],
        "agreement": found["student"]["agreement"],
        "parameters": found["student"]["parameters"],
        "teachers": float(np.mean([t["accuracy"] for t in found["teachers"]])),
        "ensemble": found["teacher_ensemble"]["accuracy"],
        "poor": result.quality.get("poor"),
        "seconds": seconds,
    }


def accuracies(table: dict, split: str) -> dict[str, dict[float, list[float]]]:
    """Row -> minutes -> accuracies of all seeds, in percent."""
    found = {}
    for key, run in table.items():
        row, minutes, _, measured = key.rsplit("/", 3)
        if measured == split:
            points = found.setdefault(row, {})
            points.setdefault(float(minutes), []).append(100 * run["accuracy"])
    return {row: dict(sorted(points.items())) for row, points in found.items()}


def spread(values: list[float]) -> float:
    """Deviation of a sample; 0 of a single value."""
    return float(np.std(values, ddof=1)) if values[1:] else 0.0


def summary(found: dict, teachers: float, ensemble: float) -> str:
    """The table as Markdown: mean and deviation over seeds, and how many these are."""
    minutes = sorted({m for points in found.values() for m in points})
    lines = [
        f"Teachers' mean {teachers:.1%}, ensemble {ensemble:.1%}.\n",
        f"| minutes | {' | '.join(f'{m:g}' for m in minutes)} |",
        f"|---{'|---' * len(minutes)}|",
    ]
    for row, points in found.items():
        cells = [
            f"{np.mean(v):.1f} ± {spread(v):.1f} ({len(v)})" if v else "-"
            for v in (points.get(m) for m in minutes)
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict, teachers: float, file: pathlib.Path) -> None:
    """Accuracy against minutes, one line per row, the teachers' mean dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for row, points in found.items():
        centre = [np.mean(values) for values in points.values()]
        around = [spread(values) for values in points.values()]
        axes.errorbar(list(points), centre, around, marker="o", label=row)
    axes.axhline(100 * teachers, color="grey", linestyle="--", label="teachers' mean")
    minutes = sorted({m for points in found.values() for m in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(minutes, [f"{m:g}" for m in minutes])
    axes.set(xlabel="minutes", ylabel="accuracy, %")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def add_options(parser: argparse.ArgumentParser, seeds: str) -> None:
    """What every comparison on these teachers takes."""
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--dataset", default="fashion_mnist", choices=SEEN)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--teacher_epochs", default=0, type=int)
    parser.add_argument("--folder", default="runs/better_images", type=pathlib.Path)
    parser.add_argument("--output", default=HERE, type=pathlib.Path)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing; table and figure of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="cdfkd_plus,cdfkd_mfs,noise")
    parser.add_argument("--minutes", default="1,2,4,8")
    parser.add_argument("--pictures", default="builtin")
    add_options(parser, seeds="0,1,2")
    options = parser.parse_args(arguments)
    if options.split == "validation" and options.dataset != "fashion_mnist":
        parser.error("--split=validation is of Fashion-MNIST alone")
    rows = options.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    minutes = [float(value) for value in options.minutes.split(",")]
    table = Table(options.output / "table.json")
    measured = name_of_split(options)
    for seed in map(int, options.seeds.split(",")):
        for row, time_given in ((row, m) for m in minutes for row in rows):
            name = f"{row}/{time_given:g}/{seed}/{measured}"
            table.complete(name, one_run, (row, time_given, seed, options))
            run, found = table.rows[name], accuracies(table.rows, measured)
            text = summary(found, run["teachers"], run["ensemble"])
            (options.output / "table.md").write_text(text + "\n")
            draw(found, run["teachers"], options.output / "minutes.png")
    print(text)


if __name__ == "__main__":
    main()
