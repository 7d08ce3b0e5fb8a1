"""One flag turns a run into each rival; what has no data learns without it."""

import json

import numpy as np
import pytest

from cdfkd_tf.data.images import RealImages
from cdfkd_tf.distillation.methods import METHODS
from tests.conftest import TOY, run_main

NO_EXPORT = "--export_formats="
pytestmark = pytest.mark.usefixtures("all_eagerly")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, data_dir, all_eagerly):
    """Flags that name two trained teachers."""
    workdir = tmp_path_factory.mktemp("teachers")
    train = ["--action=train_teachers", f"--workdir={workdir}"]
    assert run(data_dir, *train) == 0
    assert (workdir / "splits/train.txt").exists()
    files = [str(workdir / f"teachers/teacher_{index}.keras") for index in (0, 1)]
    return f"--teachers={','.join(files)}"


def run(data_dir, *more):
    return run_main("--dataset=digits", f"--data_dir={data_dir}", *TOY, *more)


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


# One for each way of sharing headers, and the one with data; others ship the same.
SHIPPED = ("cdfkd", "cdfkd_mfs", "dfed", "kd")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_method_flag_alone_makes_each_rival(method, teachers, data_dir, tmp_path):
    workdir = f"--workdir={tmp_path}"
    flags = [teachers, workdir, f"--method={method}", NO_EXPORT]
    if method in SHIPPED:
        flags[-1] = "--export_formats=tflite_int8"
    assert run(data_dir, *flags, "--aggregator=attention", "--real_samples=20") == 0
    results = results_of(tmp_path)
    assert results["method"] == method and 0 <= results["student"]["accuracy"] <= 1
    headers = 1 if METHODS[method].sharing == "single" else 2
    assert len(results["student"]["header_accuracy"]) == headers
    kind = "mean" if headers == 1 else "attention"  # one header: nothing to weigh
    assert results["aggregator"]["kind"] == kind
    assert (tmp_path / "generator.keras").exists() == bool(METHODS[method].generator)
    formats = ["tflite_int8"] if method in SHIPPED else []
    assert [entry["format"] for entry in results["exports"]] == formats
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    terms = {f"student_{term}" for term in METHODS[method].student if term != "feature"}
    terms |= {f"generator_{term}" for term in METHODS[method].generator}
    assert terms <= set(header.split(","))


def test_kd_goes_on_with_the_batches_it_would_have_seen(teachers, data_dir, tmp_path):
    def distilled(name, *epochs):
        workdir = tmp_path / name
        for stop in epochs:
            with pytest.MonkeyPatch.context() as patch:
                if stop:
                    stop_after(patch, stop)
                flags = [f"--workdir={workdir}", "--action=distill", "--method=kd"]
                run(data_dir, teachers, *flags)
        return (workdir / "history.csv").read_text().splitlines()

    def stop_after(patch, epoch):
        def stop(self, finished, logs=None):
            if finished == epoch:
                raise KeyboardInterrupt

        patch.setattr("cdfkd_tf.distillation.callbacks.Curves.on_epoch_end", stop)

    assert distilled("parts", 1, None)[-1] == distilled("whole", None)[-1]


@pytest.mark.parametrize("kind", ["weights", "attention"])
def test_an_aggregator_learns_from_invented_images_alone(
    kind, teachers, tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a data set was read")

    monkeypatch.setattr(RealImages, "_read", refuse)
    flags = [teachers, f"--workdir={tmp_path}", f"--aggregator={kind}", NO_EXPORT]
    assert run("/nowhere", *flags, "--evaluation_split=none") == 0
    aggregator = results_of(tmp_path)["aggregator"]
    assert aggregator["kind"] == kind and aggregator["real_samples"] == 0
    assert not (tmp_path / "splits").exists()


def test_the_best_epoch_is_kept_where_asked_for(
    teachers, data_dir, tmp_path, capsys, monkeypatch
):
    values = iter([0.9, 0.1])  # the first of two epochs is the better one

    def agreement(self, epoch, logs=None):
        logs["agreement_earlier"] = next(values)

    name = "cdfkd_tf.distillation.agreement.HeldOutAgreement.on_epoch_end"
    monkeypatch.setattr(name, agreement)
    flags = [teachers, f"--workdir={tmp_path}", "--action=distill", "--keep_best"]
    assert run(data_dir, *flags, "--checkpoint_every=1") == 0
    assert "Kept the student of epoch 1 of 2." in capsys.readouterr().out
    note = json.loads((tmp_path / "checkpoints/best/best.json").read_text())
    assert note == {"epoch": 1, "value": 0.9}


def test_splits_can_be_audited(teachers, data_dir, tmp_path):
    flags = [teachers, f"--workdir={tmp_path}", NO_EXPORT]
    assert run(data_dir, *flags, "--aggregator=weights", "--real_samples=20") == 0
    lines = {
        name: (tmp_path / f"splits/{name}.txt").read_text().splitlines()
        for name in ("test", "few_shot")
    }
    assert len(lines["test"]) == 72 and len(lines["few_shot"]) == 20
    classes = np.bincount([int(line.split("\t")[1]) for line in lines["few_shot"]])
    np.testing.assert_array_equal(classes, [2] * 10)
