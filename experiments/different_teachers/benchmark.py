"""Teachers that saw different classes: who answers best, and what a student keeps.

python experiments/different_teachers/benchmark.py --partitions=0.1,2x5 --seeds=0,1

Five tiny teachers (fewer with class sets) learn parts of one data set, see
partitions.py; a student of at most a fifth of their weights learns from them without
data. Prints a line per seed and writes table.json, table.md and accuracy.png into
--folder; what is there is not done again. A seed takes three to five minutes on one
core. --split=validation measures on a fifth of the training images, for choosing.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from keras import layers
from partitions import CLASS_SETS, class_sets, dirichlet

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.prepare import open_examples
from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.pipeline.run import run
from cdfkd_tf.workdir import Workdir, read_results

TEACHERS, LABELS = 5, (50, 200)
SPLITS = {"test": ("train", "test"), "validation": ("train[:80%]", "train[80%:]")}
DRAWN = pathlib.Path(__file__).parent / "partitions.json"


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


def teacher(image_shape, classes: int, seed: int) -> keras.Model:
    """6,000 weights, for normalised images."""
    keras.utils.set_random_seed(seed)
    x = image = keras.Input(image_shape)
    for filters in (8, 16, 32):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        if filters < 32:
            x = layers.MaxPooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def train(model, images, labels, updates: int = 600) -> None:
    """Adam with a half cosine."""
    epochs = max(1, updates * 64 // len(labels))
    steps = epochs * -(-len(labels) // 64)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)


def teachers_of(folder, spec, images, labels, saw, classes, seed) -> list[pathlib.Path]:
    """Trains who is missing; their files."""
    files = [folder / f"teacher_{index}.keras" for index in range(len(classes))]
    for index, (file, known) in enumerate(zip(files, classes)):
        if not file.exists():
            mine = saw == index
            model = teacher(spec.image_shape, len(known), 100 * seed + index)
            own = np.searchsorted(known, labels[mine])
            train(model, spec.normalise(images[mine]), own)
            model.save(file)
    return files


def oracle(files, spec, images, labels, counts, classes) -> float:
    """Accuracy of probabilities weighted by who saw the image's true class."""
    probabilities = np.zeros((len(labels), counts.shape[1]))
    for file, row, known in zip(files, counts, classes):
        model = keras.saving.load_model(file)
        logits = model.predict(spec.normalise(images), verbose=0)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        probabilities[:, known] += row[labels][:, None] * shares
    return float(np.mean(probabilities.argmax(-1) == labels))


def one_seed(name: str, seed: int, options) -> dict[str, float]:
    """All rows of one partition and seed."""
    spec, splits = spec_of(options.dataset), SPLITS[options.split]
    images, labels = arrays(options.dataset, options.data_dir, splits[0])
    test_images, test_labels = arrays(options.dataset, options.data_dir, splits[1])
    saw, everything = owners(name, labels, seed), list(range(spec.num_classes))
    classes = CLASS_SETS.get(name, [everything] * TEACHERS)
    folder = pathlib.Path(options.folder) / options.split / f"{name}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    files = teachers_of(folder, spec, images, labels, saw, classes, seed)
    shape = (len(files), spec.num_classes)
    counts = np.zeros(shape)
    np.add.at(counts, (saw, labels), 1)
    rows = {"oracle": oracle(files, spec, test_images, test_labels, counts, classes)}
    shared = {
        "dataset": options.dataset,
        "data_dir": options.data_dir,
        "evaluation_split": options.split,
        "teachers": tuple(map(str, files)),
        "teacher_input": "normalised",
        "seed": seed,
        "minutes": options.minutes,
        "evaluate_every": 0,
        "export_formats": (),
        "report": False,
    } | dict(flag.split("=", 1) for flag in options.flags)
    if name in CLASS_SETS:
        sets = (",".join(map(str, known)) for known in classes)
        shared["teacher_classes"] = ";".join(sets)
    for rule in options.rules.split(","):
        own = {**shared, "ensemble": rule, "workdir": str(folder / rule)}
        run(RunConfig(**own))
        results = read_results(Workdir(own["workdir"]).results)
        together, student = results["teacher_ensemble"], results["aggregator"]
        word = "mean" if rule == "mean" else "rule"
        rows |= {f"ensemble, {word}": together["accuracy"]}
        rows |= {f"student, {word}": student["accuracy"]}
        rows |= {f"seconds, {word}": results["seconds"]["distill"]}
        if rule != "mean":
            rows["weights, student"] = results["student"]["parameters"]
            rows["weights, teachers"] = together["parameters"]
            singles = [entry["accuracy"] for entry in results["teachers"]]
            rows |= {"best teacher": max(singles), "rule": together["rule"]}
            rows["student, rule, task"] = results["student"]["task_accuracy"]
    for count in LABELS if options.labels else ():
        few = {**own, "aggregator": "best", "labelled_samples": count}
        for action in ("fit_aggregator", "evaluate"):
            run(RunConfig(**{**few, "action": action}))
        results = read_results(Workdir(own["workdir"]).results)
        rows[f"student, rule, {count} labels"] = results["aggregator"]["accuracy"]
    return rows


def summary(table: dict[str, dict[str, float]]) -> str:
    """Mean and deviation over seeds in Markdown, partitions as columns."""
    names = list(dict.fromkeys(key.split("/")[0] for key in table))
    kinds = dict.fromkeys(kind for rows in table.values() for kind in rows)
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for kind in kinds:
        cells = []
        for name in names:
            found = [r.get(kind) for k, r in table.items() if k.split("/")[0] == name]
            found = [value for value in found if value is not None]
            if not found or isinstance(found[0], str):
                cells.append(", ".join(sorted(set(map(str, found)))))
            elif kind.startswith(("weights", "seconds")):
                cells.append(f"{np.mean(found):,.0f}")
            else:
                spread = f" ± {100 * np.std(found, ddof=1):.1f}" if found[1:] else ""
                cells.append(f"{100 * np.mean(found):.1f}{spread}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(table: dict[str, dict[str, float]], file: pathlib.Path) -> None:
    """Accuracy against alpha, mean and deviation over seeds."""
    from matplotlib.figure import Figure

    alphas = {key.split("/")[0] for key in table} - set(CLASS_SETS) - {"inf"}
    alphas = sorted(alphas, key=float)
    if not alphas:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind in ("ensemble, mean", "ensemble, rule", "student, mean", "student, rule"):
        found = [
            [r[kind] for k, r in table.items() if k.split("/")[0] == alpha]
            for alpha in alphas
        ]
        centre = [100 * np.mean(values) for values in found]
        spread = [100 * np.std(values) for values in found]
        style = "-" if kind.startswith("student") else "--"
        x = list(map(float, alphas))
        axes.errorbar(x, centre, spread, linestyle=style, marker="o", label=kind)
    axes.set(xlabel="alpha: the smaller, the more skewed", ylabel="accuracy, %")
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="mnist_5k")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--partitions", default="0.1,0.3,0.5,inf,2x5,5x2,overlapping")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--minutes", type=float, help="of each distillation")
    parser.add_argument("--folder", default="runs/different_teachers")
    parser.add_argument("--labels", type=int, default=1, help="0: no labelled rows")
    parser.add_argument("--rules", default="mean,auto", help="of --ensemble")
    parser.add_argument("--ship", action="store_true", help="draw partitions.json")
    parser.add_argument("flags", nargs="*", help="options of cdfkd_tf, name=value")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{options.dataset}_{options.split}.json"
    table = json.loads(file.read_text()) if file.exists() else {}
    names, seeds = options.partitions.split(","), options.seeds.split(",")
    if options.ship:
        split = SPLITS[options.split][0]
        _, labels = arrays(options.dataset, options.data_dir, split)
        ship(names, list(map(int, seeds)), labels)
        return
    for name in names:
        for seed in map(int, seeds):
            key = f"{name}/{seed}"
            if key not in table:
                table[key] = one_seed(name, seed, options)
                file.write_text(json.dumps(table, indent=1) + "\n")
            print(key, table[key], flush=True)
    file.with_suffix(".md").write_text(summary(table))
    draw(table, file.with_suffix(".png"))
    print(summary(table))


if __name__ == "__main__":
    main()
