"""Every shipped flagfile runs two steps: real parsing, real steps, shallow networks.

A session's folder holds small upstream archives and the teachers that the flagfiles
themselves train, so that a run finds its teachers where its flagfile says.
"""

import functools
import json
import os
import pathlib

import pytest

from cdfkd_tf.data import specs
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.resnet import resnet
from tests.conftest import run_main
from tests.data import archives

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted(
    str(file.relative_to(ROOT)) for file in (ROOT / "experiments").rglob("*.flags")
)
TWO_STEPS = (
    "--teacher_width=0.125",
    "--teacher_epochs=1",
    "--teacher_batch_size=200",
    "--student_width=0.125",
    "--generator_width=0.125",
    "--latent_size=8",
    "--epochs=1",
    "--steps_per_epoch=2",
    "--evaluate_every=1",
    "--batch_size=4",
    "--student_rounds=1",
    "--aggregator_epochs=2",
    "--export_formats=",
    "--noreport",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the project's, with small archives and shallow networks."""
    place = tmp_path_factory.mktemp("place")
    (place / "experiments").symlink_to(ROOT / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        shallow = functools.partial(resnet, num_blocks=(1, 1))  # two stages
        for name in BACKBONES:
            patch.setitem(BACKBONES, name, shallow)
        for name in ("caltech101", "mini_imagenet"):
            small = {"image_shape": (32, 32, 3), "shorter_side": 36}
            spec = specs.dataclasses.replace(specs.SPECS[name], **small)
            patch.setitem(specs.SPECS, name, spec)
        # Looking at invented images takes longer here than two steps of learning.
        patch.setattr("cdfkd_tf.distillation.run._LOOKED_AT", 16)
        patch.setattr("cdfkd_tf.assembly._INVENTED", 64)
        data = place / "data"
        archives.make_cifar10(data)
        archives.make_cifar100(data)
        archives.make_mnist(data, patch)
        archives.make_caltech101(data)
        archives.make_mini_imagenet(data)
        yield place


@functools.cache
def train_teachers(flagfile):
    """Runs a teachers' flagfile where it says, once."""
    assert run(flagfile) == 0


def run(flagfile, *more):
    return run_main(f"--flagfile={flagfile}", "--data_dir=data", *TWO_STEPS, *more)


def teachers_of(flagfile):
    """The flagfile that trains the teachers which this one names, or None."""
    for line in pathlib.Path(flagfile).read_text().splitlines():
        if line.startswith("--teachers=runs/"):
            _, dataset, folder, *_ = line.split("/")
            return f"experiments/{dataset}/{folder}.flags"
    return None


@pytest.mark.parametrize("flagfile", FLAGFILES)
def test_flagfile_runs(flagfile, place, tmp_path, eagerly):
    if "/teachers_" in flagfile:
        train_teachers(flagfile)
        trained = place / "runs" / os.path.relpath(flagfile[:-6], "experiments")
        assert (trained / "teachers/teacher_2.keras").exists()
        return
    needed = teachers_of(flagfile)
    if needed:
        train_teachers(needed)
    if "aggregator_" in flagfile:  # one folder: its student is not trained again
        tmp_path = place / "aggregators"
        (tmp_path / "predictor.keras").unlink(missing_ok=True)
    if flagfile.endswith("/search.flags"):
        assert run(flagfile, f"--workdir={tmp_path}", "--max_trials=1") == 0
        tmp_path /= "search/trial_0"
    elif "/digits/" in flagfile:  # measuring is the same everywhere
        assert run(flagfile, f"--workdir={tmp_path}") == 0
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["student"]["accuracy"] is not None
    else:
        if not needed:
            trained = run(flagfile, f"--workdir={tmp_path}", "--action=train_teachers")
            assert trained == 0
        steps = ["distill", *(["fit_aggregator"] * ("aggregator_" in flagfile))]
        for step in steps:
            more = (f"--workdir={tmp_path}", f"--action={step}")
            assert run(flagfile, "--evaluate_every=0", *more) == 0
    history = (tmp_path / "history.csv").read_text().splitlines()
    assert len(history) == 2 and "nan" not in history[1]
    assert (tmp_path / "student.keras").exists()
    assert (tmp_path / "predictor.keras").exists() == any(
        kind in flagfile for kind in ("/digits/", "aggregator_")
    )


def test_there_are_at_least_thirty():
    assert len(FLAGFILES) >= 30
