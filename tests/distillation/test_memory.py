"""Memory is estimated before the first step: what cannot fit is refused in time."""

import keras
import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation import memory
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests import toys

pytestmark = pytest.mark.faults


def estimated(monkeypatch, **options):
    monkeypatch.setattr(memory, "_WORTH_TRACING", 0)
    teachers = TeacherEnsemble([toys.classifier(seed=seed) for seed in range(2)])
    options = {"student_steps": 2, "export_formats": (), **options}
    config = RunConfig(method="cdfkd_mfs", **options)
    return memory.estimate(config, teachers, toys.student(2), toys.generator())


def of_teachers(monkeypatch, **options):
    parts = estimated(monkeypatch, **options).parts
    return parts["what the teachers compute of one batch"]


def test_forward_counts_the_tensors_that_gradients_read():
    network = toys.classifier()  # Conv, BatchNormalization, ReLU, mean, Dense
    found = memory._forward(lambda x: network(x, training=False), toys.SHAPE, 16)
    maps = 4 * 16 * 8 * 8 * toys.WIDTH
    assert found.largest == maps
    assert found.read == 2 * maps + 4 * 16 * toys.CLASSES
    # A model inside, and one that does not show its layers.
    for other in (toys.nested(), toys.Subclassed()):
        found = memory._forward(lambda x, m=other: m(x), toys.SHAPE, 16)
        assert found.read > 4 * 16 * 6 * 6 * 5


@pytest.mark.slow
def test_estimate_grows_with_the_batch_and_shrinks_where_teachers_are_recomputed(
    monkeypatch,
):
    small, large = (of_teachers(monkeypatch, batch_size=size) for size in (64, 256))
    assert large == pytest.approx(4 * small)
    assert of_teachers(monkeypatch, batch_size=256, recompute_teachers=True) < large
    whole = estimated(monkeypatch, batch_size=256)
    assert whole.total > memory.held() and sum(whole.parts.values()) == whole.total
    assert whole.remedies == ("a --batch_size below 256", "--recompute_teachers")
    exporting = estimated(monkeypatch, batch_size=4, export_formats=("tflite_int8",))
    assert "converters" in exporting.parts


def test_estimate_of_a_bank_counts_its_images(monkeypatch):
    config = RunConfig(method="cdfkd_plus", batch_size=4, student_steps=5)
    teachers = TeacherEnsemble([toys.classifier()])
    monkeypatch.setattr(memory, "_WORTH_TRACING", 0)
    few, many = (
        memory.estimate(config, teachers, toys.student(1), bank_size=size).parts
        for size in (10**7, 2 * 10**7)
    )
    name = "images kept and drawn"
    assert many[name] - few[name] == 2 * 10**7 * np.prod(toys.SHAPE)


def test_estimate_leaves_small_runs_alone():
    teachers = TeacherEnsemble([toys.classifier()])
    config = RunConfig(batch_size=4, student_steps=2)
    assert memory.estimate(config, teachers, toys.student(1)) is None


def estimate_of(size):
    parts = {"what the teachers compute of one batch": size, "graphs": 1e9}
    return memory.Estimate(parts, ("a --batch_size below 64", "--recompute_teachers"))


def test_check_refuses_what_the_machine_does_not_have(monkeypatch, recwarn):
    total, available = memory.machine_memory()
    assert 0 < available <= total and 0 < memory.held() < total
    memory.check(estimate_of(0.01 * available))
    memory.check(None)
    assert not recwarn
    message = (
        r"takes about [\d.]+ GB of memory \([\d.]+ for what the teachers compute.*"
        r"this machine has [\d.]+ GB.*a --batch_size below 64 or --recompute_teachers"
    )
    with pytest.raises(RequestError, match=message):
        memory.check(estimate_of(2 * total))
    with pytest.warns(DistillationWarning, match=r"GB are free.*--batch_size below 64"):
        memory.check(estimate_of(available + memory.held()))


def test_machine_memory_is_that_of_the_container(monkeypatch):
    limits = [(8e9, 5e9), (float("inf"), 1e9)]
    monkeypatch.setattr(memory, "_limits", lambda: iter(limits))
    total, available = memory.machine_memory()
    assert total == 8e9 and available <= 3e9


def test_weights_are_counted_in_bytes():
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    assert memory._weights(dense) == 4 * (3 * 5 + 5)
