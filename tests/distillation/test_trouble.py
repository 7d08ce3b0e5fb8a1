"""Trouble is said once, when it lasts, with what to do."""

import warnings

import numpy as np
import pytest
from cdfkd_tf.distillation.trouble import TroubleWatch, effective_classes

from cdfkd_tf.errors import DistillationWarning

RNG = np.random.default_rng(0)


def healthy(n=400, teachers=2, classes=10):
    truth = RNG.integers(classes, size=n)
    logits = RNG.normal(size=(n, teachers, classes))
    logits[np.arange(n), :, truth] += 5
    return logits


def warned(logits, epochs=8, patience=5):
    watch = TroubleWatch(["a", "b"], patience)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = []
        for _ in range(epochs):
            watch.see(logits)
            said.append(len(caught))
    assert all(issubclass(item.category, DistillationWarning) for item in caught)
    return [str(item.message) for item in caught], said


def test_healthy_teachers_and_generators_are_left_alone():
    assert warned(healthy())[0] == []


def test_a_uniform_teacher_is_named_once_after_it_lasted():
    logits = healthy()
    logits[:, 1] = 1e-3 * logits[:, 1]
    messages, said = warned(logits)
    assert len(messages) == 1 and "Teacher b gives all classes the same" in messages[0]
    assert "--teacher_input" in messages[0]
    assert said == [0, 0, 0, 0, 1, 1, 1, 1]


def test_teachers_with_other_class_orders_are_named():
    logits = healthy()
    logits[:, 1] = np.roll(logits[:, 1], 3, axis=-1)
    (message,), _ = warned(logits)
    assert "Teachers a and b pick the same class on 0%" in message
    assert "same order" in message


def test_mode_collapse_is_said_with_a_remedy():
    logits = healthy()
    logits[:, :, 7] += 50
    messages, _ = warned(logits)
    assert len(messages) == 1
    assert "about 1.0 of 10 classes" in messages[0] and "balance" in messages[0]


def test_what_passes_is_not_said():
    watch = TroubleWatch(["a", "b"], patience=3)
    collapsed = healthy()
    collapsed[:, :, 7] += 50
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for logits in (collapsed, collapsed, healthy(), collapsed, collapsed):
            watch.see(logits)
    assert [str(warning.message) for warning in said] == []


@pytest.mark.parametrize(
    "shares, classes", [([1, 0], 1), ([0.5, 0.5], 2), ([0.25] * 4, 4)]
)
def test_effective_classes(shares, classes):
    assert effective_classes(np.array(shares)) == pytest.approx(classes)
