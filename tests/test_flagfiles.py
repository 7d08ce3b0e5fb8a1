"""Shipped flagfiles are right requests, and run: three for real, slowly."""

import json
import pathlib

import pytest

from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.distillation.build import build_method
from cdfkd_tf.networks.backbones import BACKBONES, find_backbone
from cdfkd_tf.networks.generators import GENERATORS
from cdfkd_tf.tuning.space import find_space
from tests.data import archives
from tests.toys import parse, run_main

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted(
    str(file.relative_to(ROOT)) for file in (ROOT / "experiments").rglob("*.flags")
)


def test_flagfiles_are_right_requests(monkeypatch):
    """Every flag, name and loss is known, and the teachers' own flagfile is there."""
    monkeypatch.chdir(ROOT)
    folders = set()
    for flagfile in FLAGFILES:
        config = parse(f"--flagfile={flagfile}")
        build_method(config)
        known = config.dataset not in ("folder", "none")
        spec = spec_of(config.dataset) if known else plain_spec("none", (8, 8, 1), 4)
        if config.student != "auto":
            find_backbone(config.student, spec, config.student_feature_layers)
        assert config.generator in GENERATORS, flagfile
        assert config.teacher_network in BACKBONES, flagfile
        own = config.dataset == "none"  # the user's models
        for teacher in () if own else config.teachers:
            _, dataset, trained, *_ = pathlib.PurePath(teacher).parts
            source = parse(f"--flagfile=experiments/{dataset}/{trained}.flags")
            assert source.dataset == config.dataset, flagfile
            assert teacher.startswith(f"{source.workdir}/teachers/"), flagfile
        if config.action == "search":
            find_space(config)
        folders.add(flagfile.split("/")[1])
    assert folders >= {"digits", "mnist", "cifar10", "cifar100", "caltech101"}


TWO_STEPS = (
    "--data_dir=data",
    "--teacher_width=0.125",
    "--teacher_epochs=1",
    "--teacher_batch_size=200",
    "--student_width=0.125",
    "--generator_width=0.125",
    "--epochs=1",
    "--steps_per_epoch=2",
    "--evaluate_every=1",
    "--batch_size=8",
    "--export_formats=tflite_int8",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flagfile, teachers",
    [
        ("experiments/digits/quickstart.flags", None),
        ("experiments/mnist/cdfkd.flags", "experiments/mnist/teachers_lenet.flags"),
        (
            "experiments/cifar10/cdfkd_mfs.flags",
            "experiments/cifar10/teachers_resnet34.flags",
        ),
    ],
)
def test_flagfile_runs_with_its_own_networks(flagfile, teachers, tmp_path, monkeypatch):
    """Two steps of narrow networks; small archives in the data sets' own formats."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    archives.make_mnist(tmp_path / "data", monkeypatch)
    archives.make_cifar10(tmp_path / "data")
    for name in filter(None, (teachers, flagfile)):
        assert run_main(f"--flagfile={name}", *TWO_STEPS) == 0
    workdir = pathlib.Path(parse(f"--flagfile={flagfile}").workdir)
    results = json.loads((workdir / "results.json").read_text())
    assert results["student"]["accuracy"] is not None
    assert len(results["teachers"]) == 3 and len(results["exports"]) == 1
    rows = (workdir / "history.csv").read_text().splitlines()
    assert len(rows) == 2 and "nan" not in rows[1]
    assert (workdir / "report.html").exists()
