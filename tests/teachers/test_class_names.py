"""Teachers of different classes: names make one list of classes of them."""

import zipfile

import numpy as np
import pytest

from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.teachers.class_names import map_of, told_classes, union_of
from cdfkd_tf.teachers.rules import choose_rule, doubts
from tests import toys
from tests.rows import rows as table

PETS, BIRDS = ("cat", "dog"), ("owl", "dog", "duck")


def test_names_are_told_by_the_flag_or_beside_and_inside_the_files(tmp_path):
    files = [tmp_path / "a" / "a.keras", tmp_path / "b.tflite"]
    files[0].parent.mkdir()
    for file, known in zip(files, (PETS, BIRDS)):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("nothing", "")
            if file.suffix == ".tflite":
                archive.writestr("labels.txt", "\n".join(known))
    assert told_classes("", files) is None  # one tells nothing
    (files[0].parent / "classes.txt").write_text("cat\ndog\n")
    assert told_classes("", files) == [PETS, BIRDS]
    listed = f"cat, dog;{tmp_path / 'c.txt'}"
    (tmp_path / "c.txt").write_text("owl\ndog\n\nduck\n")
    assert told_classes(listed, ["x", "y"]) == [PETS, BIRDS]
    assert union_of([PETS, BIRDS]) == ("cat", "dog", "owl", "duck")
    assert map_of([PETS, BIRDS], union_of([PETS, BIRDS])).columns == [(0, 1), (2, 1, 3)]
    models = [toys.classifier(classes=3), toys.classifier(classes=3)]
    with pytest.warns(DistillationWarning, match="answers 3 classes"):
        assert told_classes("", files, lambda: models) is None


@table("entry", ['["owl", "dog"]', "{0: 'owl', 1: 'dog'}", "owl\ndog"])
def test_names_are_read_from_the_metadata_of_onnx_files(entry, tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "network", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"names": entry})
    onnx.save(model, tmp_path / "a.onnx")
    assert told_classes("", [tmp_path / "a.onnx"]) == [("owl", "dog")]


@table(
    "flag, words",
    [
        ("cat,dog", "of 1 teachers"),
        ("cat,dog;cat,cat", "two different names or more"),
        ("cat,dog;", "two different names or more"),
    ],
)
def test_names_that_do_not_fit_are_refused(flag, words):
    with pytest.raises(RequestError, match=words):
        told_classes(flag, ["x", "y"])
    with pytest.raises(RequestError, match="the data set lacks: dog"):
        map_of([PETS], ("cat", "owl"))


def rows(*norms):
    return [np.array(row, float) for row in norms]


def test_rule_is_chosen_by_counts_classes_and_competence():
    alike, skewed = (
        rows([2, 2, 2], [3, 2.5, 2.8]),
        rows([4, 1, 1], [1, 1, 4], [1, 4, 1]),
    )
    everyone = np.ones((2, 3), bool)
    assert choose_rule("auto", alike, everyone).name == "mean"
    rule = choose_rule("auto", skewed, np.ones((3, 3), bool))
    assert rule.name == "competence" and "teachers differ" in rule.evidence
    assert "teacher 1: 0.2 0.2 1.0" in rule.table()
    assert choose_rule("auto", alike, np.eye(2, 3, dtype=bool) | [0, 0, 1]).name == (
        "competence"
    )
    counts = np.array([[9.0, 1, 0], [1, 1, 5]])
    rule = choose_rule("auto", alike, everyone, counts)
    np.testing.assert_allclose(rule.weights, [[0.9, 0.5, 0], [0.1, 0.5, 1]])
    with pytest.raises(RequestError, match="no teacher learned from an image of cl"):
        choose_rule("counts", alike, everyone, np.array([[9.0, 1, 0], [1, 1, 0]]))
    unknown = choose_rule("auto", [None, None], everyone)
    assert unknown.name == "mean" and unknown.evidence.startswith("guessed")


def test_doubts_name_classes_that_a_teacher_never_answers():
    rule = choose_rule("mean", rows([2, 2, 2], [2, 2, 2]), np.ones((2, 3), bool))
    logits = np.random.default_rng(0).normal(size=(400, 2, 3))
    logits[:, 1, 2] = -9
    (doubt,) = doubts(rule, logits, ["x", "y"], PETS + ("owl",))
    assert "Teacher y never answers owl" in doubt


@pytest.mark.slow
def test_student_of_teachers_of_different_classes_knows_all(tmp_path):
    """From Python to the files for devices."""
    import cdfkd_tf

    models = [toys.classifier(classes=2, seed=0), toys.classifier(classes=3, seed=1)]
    result = cdfkd_tf.distill(
        [(models[0], PETS), (models[1], BIRDS)],
        workdir=tmp_path / "run",
        epochs=1,
        steps_per_epoch=1,
        bank_size=64,
        batch_size=8,
        student_width=0.25,
    )
    assert result.predictor.output_shape == (None, 4)
    images = np.random.default_rng(0).random((12, *toys.SHAPE)).astype("float32")
    measured = result.evaluate(images, np.arange(12) % 4)
    assert measured["teacher_ensemble"]["rule"] == "competence"
    assert 0 <= measured["student"]["task_accuracy"] <= 1
    assert measured["aggregator"]["accuracy"] == measured["student"]["accuracy"]
    formats = ["tflite_float32", "tflite_int8", "saved_model"]
    entries = result.export(tmp_path / "export", formats)
    assert entries[1]["float_operators"] == []
    assert min(entry["agreement"] for entry in entries) > 0.9
    with zipfile.ZipFile(tmp_path / "export" / "student_float32.tflite") as file:
        assert file.read("labels.txt").split() == [b"cat", b"dog", b"owl", b"duck"]
    fit = result.fit_aggregator(images, np.arange(12) % 4, kind="best")
    assert np.isfinite(fit.standard_error)
