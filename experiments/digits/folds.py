"""Two settings of the quickstart, each digit in the test split once.

    python experiments/digits/folds.py --options="--student_learning_rate=0.1"

All 1,797 digits in five stratified folds (scikit-learn, seed 0), as a folder of images.
For each fold three teachers learn from the other four; the quickstart's own settings
and those with `--options` distil the same teachers. Finished folds are not repeated.
One thread per process, so that the same seed gives the same numbers; `--folds=0,1,2`
and `--folds=3,4` use two cores.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
FOLDS = 5
COMMON = [
    "--flagfile=experiments/digits/quickstart.flags",
    "--dataset=folder",
    "--export_formats=",
    "--noreport",
    "--aggregator=mean",
    "--labelled_samples=0",
    "--evaluate_every=0",
]


def write_fold(fold: int, folder: pathlib.Path) -> None:
    """`folder/{train,test}/<digit>/<index>.png`, 16x16 as the data set has them."""
    from cdfkd_tf.data.builders.digits import enlarge

    digits = load_digits()
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    parts = list(splitter.split(digits.target, digits.target))[fold]
    for split, indices in zip(("train", "test"), parts):
        for index in indices:
            file = folder / split / str(digits.target[index]) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(enlarge(digits.images[index])[..., 0]).save(file)


def run(workdir: pathlib.Path, images: pathlib.Path, *options: str) -> dict:
    """The results.json of one run."""
    flags = [*COMMON, f"--image_folder={images}", f"--workdir={workdir}", *options]
    threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    command = [sys.executable, str(ROOT / "main.py"), *flags]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads})
    if done.returncode:  # the run has printed its error
        raise SystemExit(done.returncode)
    return json.loads((workdir / "results.json").read_text())


def main() -> None:
    """Runs the folds, prints accuracies and differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--options", required=True, help="flags of the other settings")
    parser.add_argument("--folds", default=",".join(map(str, range(FOLDS))))
    parser.add_argument("--workdir", default="runs/digits/folds", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    for fold in map(int, arguments.folds.split(",")):
        folder = (ROOT / arguments.workdir).resolve() / f"fold{fold}"
        if not (folder / "images").exists():
            shutil.rmtree(folder / "images.part", ignore_errors=True)
            write_fold(fold, folder / "images.part")
            (folder / "images.part").rename(folder / "images")
        seed = f"--seed={fold}"
        own = run(folder / "own", folder / "images", seed)
        files = [folder / f"own/teachers/teacher_{index}.keras" for index in range(3)]
        teachers = f"--teachers={','.join(map(str, files))}"
        more = shlex.split(arguments.options)
        other = run(folder / "other", folder / "images", seed, teachers, *more)
        ensemble = own["teacher_ensemble"]["accuracy"]
        found = (own["student"]["accuracy"], other["student"]["accuracy"])
        rows.append(100 * np.array([ensemble, *found, found[1] - found[0]]))
    print("\nfold  ensemble     own   other  difference")
    for fold, row in zip(arguments.folds.split(","), rows):
        print(f"{fold:>4}" + "".join(f"{value:10.2f}" for value in row))
    for name, compute in (("mean", statistics.fmean), ("dev.", statistics.stdev)):
        if len(rows) > 1:
            values = [compute(column) for column in zip(*rows)]
            print(name + "".join(f"{value:10.2f}" for value in values))


if __name__ == "__main__":
    main()
