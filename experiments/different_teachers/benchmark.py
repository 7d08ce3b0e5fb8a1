"""Teachers that saw different classes: who answers best, and what a student keeps.

python experiments/different_teachers/benchmark.py --partitions=0.1,2x5 --seeds=0,1

Five small teachers (fewer, larger ones with class sets) learn parts of one data set,
see partitions.py; students of at most a fifth of their weights learn from them. What is
done of a partition and seed stands in FOLDER/DATASET_SPLIT/PARTITION_SEED/rows.json and
is not done again: a run may be stopped and called again, and several may work on
different seeds or partitions side by side. Each call ends with table.md, accuracy.png
and results.json of all that is there, the seconds that each row took among it.
--split=validation measures on other training images, for choosing.
"""

import argparse
import contextlib
import gc
import json
import pathlib
import time

import keras
import numpy as np
from keras import layers
from partitions import CLASS_SETS, class_sets, dirichlet

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.prepare import open_examples
from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.pipeline.run import run
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.fused_batchnorm import fuse_layers
from cdfkd_tf.teachers.class_map import ClassMap
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.rules import RULES, unlikeness
from cdfkd_tf.workdir import Workdir, read_results

TEACHERS = 5
DRAWN = pathlib.Path(__file__).parent / "partitions.json"
# Data set -> images to learn from and to measure on: `test`, `validation`.
SPLITS = {
    "mnist_5k": {
        "test": ("train", "test"),
        "validation": ("train[:80%]", "train[80%:]"),
    },
    "fashion_mnist": {
        "test": ("train[:10000]", "test"),
        "validation": ("train[:10000]", "train[80%:]"),
    },
}
# What student and rivals share, where methods bring something for larger networks.
SMALL = {"student": "auto", "generator_width": 0.25, "batch_size": 64}
SMALL |= {"report": False, "export_formats": ()}
# Rates chosen on validation images: with the published ones thirty steps leave so small
# a generator's images unlike anything.
ONE_SHOT = {"epochs": 40, "student_steps": 150, "bank_size": 2560}
ONE_SHOT |= {"student_learning_rate": 0.1}
WEAKER = {"hard_cross_entropy": 1.0, "ensemble": -0.1}
FED = {"epochs": 20, "steps_per_epoch": 30, "student_steps": 5, "ensemble": "mean"}
# 8,000 updates, as on kept images.
REAL = {"images": "real", "epochs": 20, "student_steps": 20, "steps_per_epoch": 20}
# Row -> options. The last three replace images, target or both by what is not to be
# had: what limits the student is seen in what they gain.
STUDENTS: dict[str, dict] = {
    "student": {},
    "single": {"student_headers": "single", "student_loss": "header=0"},
    "mean": {"ensemble": "mean"},
    "generator": {"images": "generated", "bank_size": 20_000},
    "dfed": {"method": "dfed", **FED},
    "dense": {"method": "dense", **ONE_SHOT, "generator_learning_rate": 0.01},
    "coboosting": {
        **{"method": "coboosting", **ONE_SHOT, "generator_loss": WEAKER},
        "generator_learning_rate": 0.03,
    },
    "real_images": REAL,
    "oracle_target": {"teachers": "oracle"},
    "oracle_both": {"teachers": "oracle", **REAL},
}
# What is learned on top of `student`: the aggregator and the number of labels. The last
# two are the control: the headers' own last layers learn on.
LABELS = {
    "50 labels": ("best", 50),
    "200 labels": ("best", 200),
    "50 labels in headers": ("header_tuning", 50),
    "200 labels in headers": ("header_tuning", 200),
}
ROWS = ("ensembles", "fedavg", "student", *LABELS, *list(STUDENTS)[1:])
RIVALS = ("mean", "single", "generator", "dfed", "dense", "coboosting", "fedavg")
DRAWN_AS_LINES = (
    *("ensemble, mean", "ensemble, auto", "fedavg", "student", "200 labels"),
    *("generator", "dfed", "dense", "coboosting"),
)


def arrays(dataset: str, data_dir: str, split: str):
    """Images `(n, height, width, channels)` in [0, 1] and labels `(n,)`."""
    examples = open_examples(spec_of(dataset), data_dir)
    pairs = [
        (examples.decode(example["image"]).numpy(), int(example["label"]))
        for example in examples.read(split)
    ]
    images, labels = zip(*pairs)
    return np.stack(images), np.array(labels)


def owners(name: str, labels: np.ndarray, seed: int) -> np.ndarray:
    """For each training image the teacher that saw it: as shipped, else drawn."""
    shipped = json.loads(DRAWN.read_text()) if DRAWN.exists() else {}
    text = shipped.get(_key(labels, name, seed))
    if text:
        return np.array(list(text), int)
    if name in CLASS_SETS:
        parts = class_sets(labels, name, seed)
    else:
        parts = dirichlet(labels, TEACHERS, float(name), seed)
    found = np.empty(len(labels), int)
    for index, part in enumerate(parts):
        found[part] = index
    return found


def _key(labels: np.ndarray, name: str, seed: int) -> str:
    return f"{len(labels)} images, {name}, seed {seed}"


def ship(names, seeds, labels: np.ndarray) -> None:
    """Writes who saw which image: a digit per training image, the teacher's."""
    DRAWN.unlink(missing_ok=True)
    drawn = {
        _key(labels, name, seed): "".join(map(str, owners(name, labels, seed)))
        for name in names
        for seed in seeds
    }
    DRAWN.write_text(json.dumps(drawn, indent=0) + "\n")


def teacher(image_shape, classes: int, seed: int, share: float) -> keras.Model:
    """For normalised images; 31,000 weights times `share`."""
    keras.utils.set_random_seed(seed)
    x = image = keras.Input(image_shape)
    for level in (8, 16, 32):
        filters = round(level * (share * TEACHERS) ** 0.5)
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        if level < 32:
            x = layers.MaxPooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def train(model, images, labels, seed: int, updates: int = 600) -> None:
    """Adam with a half cosine; 64 images an update, in passes of their own order."""
    fuse_layers(model.layers)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, updates)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Compiled by XLA, pooling and its gradient are slower on a processor.
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    rng = np.random.default_rng(seed)
    passes = -(-64 * updates // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(passes)])
    order = order[: 64 * updates]
    model.fit(images[order], labels[order], batch_size=64, shuffle=False, verbose=0)


class Case:
    """One partition and seed: who saw what, the teachers' files, and what was measured.

    Args:
        name: of the partition.
        seed: of partition, teachers and students.
        options: of the command line.
    """

    def __init__(self, name: str, seed: int, options: argparse.Namespace):
        self.name, self.seed, self.options = name, seed, options
        self.spec = spec_of(options.dataset)
        self.splits = SPLITS[options.dataset][options.split]
        everything = list(range(self.spec.num_classes))
        self.classes = CLASS_SETS.get(name, [everything] * TEACHERS)
        folder = pathlib.Path(options.folder)
        self.folder = folder / f"{options.dataset}_{options.split}" / f"{name}_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "rows.json"
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.teachers = [
            self.folder / f"teacher_{index}.keras" for index in range(len(self.classes))
        ]
        self.oracle = self.folder / "oracle.keras"
        self._images = None

    @property
    def images(self):
        """Training images and labels, those to measure on, and who saw which."""
        if self._images is None:
            options = self.options
            pairs = [
                arrays(options.dataset, options.data_dir, split)
                for split in self.splits
            ]
            saw = owners(self.name, pairs[0][1], self.seed)
            self._images = (*pairs[0], *pairs[1], saw)
        return self._images

    def complete(self, wanted: list[str]) -> None:
        """Does what is missing of these rows, row by row."""
        for row in wanted:
            absent = row == "fedavg" and self.name in CLASS_SETS
            if row in self.rows or absent:
                continue
            self.train_teachers(row)
            begun, used = time.monotonic(), time.process_time()
            log = (self.folder / "log.txt").open("a")
            with log, contextlib.redirect_stdout(log):
                found = self.measured(row)
            found["seconds"] = round(time.monotonic() - begun, 1)
            found["processor seconds"] = round(time.process_time() - used, 1)
            self.rows[row] = found
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps(self.rows, indent=1) + "\n")
            print(self.name, self.seed, row, found, flush=True)
            keras.utils.clear_session()
            gc.collect()

    def measured(self, row: str) -> dict[str, float | str]:
        """What is to be known of a row."""
        if row == "ensembles":
            return self.ensembles()
        if row == "fedavg":
            return {row: self.fedavg()}
        if row in LABELS:
            return {row: self.labelled(*LABELS[row])}
        return self.student(row)

    def train_teachers(self, row: str) -> None:
        """Trains who is missing; for the oracles one that sees all images."""
        jobs = list(zip(self.teachers, self.classes, range(len(self.classes))))
        if row.startswith("oracle"):
            jobs.append((self.oracle, list(range(self.spec.num_classes)), None))
        for file, known, index in jobs:
            if not file.exists():
                images, labels, *_, saw = self.images
                mine = saw == index if index is not None else saw >= 0
                seed = 100 * self.seed + (99 if index is None else index)
                share = 1 if index is None else 1 / len(self.classes)
                model = teacher(self.spec.image_shape, len(known), seed, share)
                own = np.searchsorted(known, labels[mine])
                train(model, self.spec.normalise(images[mine]), own, seed)
                model.save(file)

    def counts(self) -> np.ndarray:
        """`(T, C)`: how many images of each class each teacher learned from."""
        _, labels, *_, saw = self.images
        counts = np.zeros((len(self.classes), self.spec.num_classes))
        np.add.at(counts, (saw, labels), 1)
        return counts

    def ensembles(self) -> dict[str, float | str]:
        """Accuracy of each teacher's best, each rule, and weights by the true class."""
        *_, images, labels, _ = self.images
        models = [keras.saving.load_model(file) for file in self.teachers]
        classes, counts = ClassMap(self.classes, self.spec.num_classes), self.counts()
        own = [row[known] for row, known in zip(counts, self.classes)]
        found: dict[str, float | str] = {}
        for name in ("auto", *RULES):
            told = own if name == "counts" else None
            together = TeacherEnsemble(models, classes, name, told)
            if name == "auto":
                logits = np.concatenate(
                    [
                        together.answers(self.spec.normalise(part)).logits
                        for part in np.array_split(images.astype("float32"), 20)
                    ]
                )
                found["rule"] = together.rule.name
                found["unlike"] = unlikeness(together.rule.competence)
                picked = np.where(classes.known, logits, -np.inf).argmax(-1)
                right = np.mean(picked == labels[:, None], axis=0)
                found |= {"best teacher": float(right.max())}
                found |= {"mean teacher": float(right.mean())}
            joined = np.asarray(together.combined(logits))
            found[f"ensemble, {name}"] = float(np.mean(joined.argmax(-1) == labels))
        shifted = np.where(classes.known, logits, -1e9)
        shares = np.exp(shifted - shifted.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        true = (counts[:, labels].T[..., None] * shares).sum(1).argmax(-1)
        found["oracle, weights by true class"] = float(np.mean(true == labels))
        found["weights, teachers"] = sum(model.count_params() for model in models)
        return found

    def fedavg(self) -> float:
        """Accuracy of weights that are averaged by the number of images, once.

        Of other teachers, which begin with the same weights: the average of networks
        with different beginnings is worth nothing.
        """
        seen, seen_labels, images, labels, saw = self.images
        shape, count = self.spec.image_shape, len(self.teachers)
        together: list = []
        for index in range(count):
            model = teacher(shape, self.spec.num_classes, 100 * self.seed, 1 / count)
            mine = saw == index
            own, own_labels = self.spec.normalise(seen[mine]), seen_labels[mine]
            train(model, own, own_labels, 100 * self.seed + index)
            together.append([mine.mean() * part for part in model.get_weights()])
        model.set_weights([sum(parts) for parts in zip(*together)])
        logits = model.predict(self.spec.normalise(images), verbose=0)
        return float(np.mean(logits.argmax(-1) == labels))

    def config(self, row: str, **more) -> RunConfig:
        """The run of a student."""
        own = {
            "dataset": self.options.dataset,
            "data_dir": self.options.data_dir,
            "evaluation_split": self.options.split,
            "teachers": tuple(map(str, self.teachers)),
            "teacher_input": "normalised",
            "seed": self.seed,
            "evaluate_every": 0,
            "checkpoint_minutes": 0,
            "checkpoint_every": 0,
            "workdir": str(self.folder / row.replace(" ", "_")),
            **SMALL,
            **STUDENTS[row],
            **dict(flag.split("=", 1) for flag in self.options.flags),
            **more,
        }
        if own["teachers"] == "oracle":
            own["teachers"] = (str(self.oracle),)
        elif self.name in CLASS_SETS:
            sets = (",".join(map(str, known)) for known in self.classes)
            own["teacher_classes"] = ";".join(sets)
        return RunConfig(**own)

    def student(self, row: str) -> dict[str, float]:
        """Accuracy of a student, its size, and which updates it had."""
        config = self.config(row)
        run(config)
        results = read_results(Workdir(config.workdir).results)
        found = {row: results["aggregator"]["accuracy"]}
        found[f"weights, {row}"] = results["student"]["parameters"]
        if self.name in CLASS_SETS and not row.startswith("oracle"):
            found[f"{row}, known task"] = results["student"]["task_accuracy"]
        return found

    def labelled(self, kind: str, count: int) -> float:
        """Accuracy of the first student, its headers joined with labels."""
        if "student" not in self.rows:
            run(self.config("student"))
        for action in ("fit_aggregator", "evaluate"):
            few = {"aggregator": kind, "labelled_samples": count, "action": action}
            run(self.config("student", **few))
        results = read_results(Workdir(self.config("student").workdir).results)
        return results["aggregator"]["accuracy"]


def gather(results: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """Partition -> seed -> what was measured, the times of rows as `seconds, ROW`."""
    table: dict[str, dict[str, dict]] = {}
    for case, rows in results.items():
        name, seed = case.rsplit("_", 1)
        into = table.setdefault(name, {}).setdefault(seed, {})
        for row, found in rows.items():
            for kind, value in found.items():
                into[f"{kind}, {row}" if "seconds" in kind else kind] = value
    return table


def summary(table: dict[str, dict[str, dict]]) -> str:
    """Mean and deviation over seeds in Markdown, partitions as columns."""
    kinds = dict.fromkeys(
        kind for seeds in table.values() for rows in seeds.values() for kind in rows
    )
    order = sorted(kinds, key=lambda k: ("seconds" in k, k.startswith("weights")))
    lines = [f"| | {' | '.join(table)} |", "|---" * (len(table) + 1) + "|"]
    lines.append(f"| seeds | {' | '.join(str(len(s)) for s in table.values())} |")
    for kind in order:
        cells = []
        for seeds in table.values():
            found = [rows[kind] for rows in seeds.values() if kind in rows]
            if not found or isinstance(found[0], str):
                cells.append(", ".join(sorted(set(map(str, found)))))
            elif kind.startswith("weights") or "seconds" in kind:
                cells.append(f"{np.mean(found):,.0f}")
            elif kind == "unlike":
                cells.append(f"{np.mean(found):.2f}")
            else:
                cells.append(_percent(found))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for rival in RIVALS:
        cells = [_against(seeds.values(), rival) for seeds in table.values()]
        lines.append(f"| student less {rival}, points (t) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(values) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if values[1:] else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def _against(rows, rival: str) -> str:
    """Mean over seeds of the difference in pairs, and its t."""
    both = [row for row in rows if {"student", rival} <= {*row}]
    pairs = [100 * (row["student"] - row[rival]) for row in both]
    if not pairs:
        return ""
    error = np.std(pairs, ddof=1) / len(pairs) ** 0.5 if pairs[1:] else 0
    return f"{np.mean(pairs):+.1f}" + (f" ({np.mean(pairs) / error:.1f})" * bool(error))


def draw(table: dict[str, dict[str, dict]], file: pathlib.Path) -> None:
    """Accuracy against alpha, mean and deviation over seeds."""
    from matplotlib.figure import Figure

    alphas = sorted({*table} - {*CLASS_SETS} - {"inf"}, key=float)
    if not alphas:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind in DRAWN_AS_LINES:
        found = {
            alpha: [100 * r[kind] for r in table[alpha].values() if kind in r]
            for alpha in alphas
        }
        found = {alpha: values for alpha, values in found.items() if values}
        if found:
            means = list(map(np.mean, found.values()))
            spreads = [np.std(v, ddof=1) if v[1:] else 0 for v in found.values()]
            axes.errorbar(
                list(map(float, found)), means, spreads, label=kind, marker="o"
            )
    axes.set(xlabel="alpha: the smaller, the more skewed", ylabel="accuracy, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mnist_5k", choices=SPLITS)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--partitions", default="0.1,0.3,0.5,inf,2x5,5x2,overlapping")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--rows", default=",".join(ROWS), help="all, if not named")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--folder", default="runs/different_teachers")
    parser.add_argument("--ship", action="store_true", help="draw partitions.json")
    parser.add_argument("flags", nargs="*", help="options of cdfkd_tf, name=value")
    options = parser.parse_args()
    names, rows = options.partitions.split(","), options.rows.split(",")
    seeds = list(map(int, options.seeds.split(",")))
    unknown = {*rows} - {*ROWS}
    if unknown:
        parser.error(f"--rows knows {', '.join(ROWS)}; got {', '.join(unknown)}.")
    if options.ship:
        split = SPLITS[options.dataset][options.split][0]
        ship(names, seeds, arrays(options.dataset, options.data_dir, split)[1])
        return
    for seed in seeds:
        for name in names:
            Case(name, seed, options).complete(rows)
    folder = pathlib.Path(options.folder) / f"{options.dataset}_{options.split}"
    files = sorted(folder.glob("*/rows.json"))
    results = {file.parent.name: json.loads(file.read_text()) for file in files}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = gather(results)
    (folder / "table.md").write_text(summary(table))
    draw(table, folder / "accuracy.png")
    print(summary(table))


if __name__ == "__main__":
    main()
