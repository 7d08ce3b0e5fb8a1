"""Columns of teachers find their classes of the whole."""

import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.errors import RequestError
from cdfkd_tf.teachers.class_map import ClassMap


def logits_of(*widths):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(3, width)).astype("float32") for width in widths]


def test_class_map_identity_changes_no_bit_and_adds_no_operation():
    logits = logits_of(4, 4)
    class_map = ClassMap.identity(2, 4)
    assert class_map.mask is None
    np.testing.assert_array_equal(class_map.to_whole(logits), np.stack(logits, 1))
    traced = tf.function(class_map.to_whole).get_concrete_function(
        [tf.constant(x) for x in logits]
    )
    kinds = [operation.type for operation in traced.graph.get_operations()]
    assert sorted(set(kinds)) == ["Identity", "Pack", "Placeholder"]


def test_class_map_fills_absent_classes_with_zeros_that_the_mask_tells():
    first, second = logits_of(2, 3)
    class_map = ClassMap([(4, 1), (0, 2, 3)], 5)
    whole = np.asarray(class_map.to_whole([first, second]))
    expected = np.zeros((3, 2, 5), "float32")
    expected[:, 0, [4, 1]] = first
    expected[:, 1, [0, 2, 3]] = second
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(class_map.mask, expected[0] != 0)
    assert np.isfinite(whole).all()


def test_class_map_of_another_order_has_no_mask():
    (logits,) = logits_of(3)
    class_map = ClassMap([(2, 0, 1)], 3)
    assert class_map.mask is None
    whole = np.asarray(class_map.to_whole([logits]))
    np.testing.assert_array_equal(whole[:, 0, [2, 0, 1]], logits)


def test_class_map_passes_gradients_to_each_teachers_own_columns():
    first, second = map(tf.constant, logits_of(2, 3))
    class_map = ClassMap([(4, 1), (0, 2, 3)], 5)
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        loss = tf.reduce_sum(class_map.to_whole([first, second])[:, 0] ** 2)
    gradients = tape.gradient(loss, [first, second])
    np.testing.assert_allclose(gradients[0], 2 * first)
    np.testing.assert_array_equal(gradients[1], np.zeros((3, 3)))


def test_class_map_refuses_what_is_no_map():
    for columns, message in [
        ([(0, 0), (0, 1, 2)], "teacher 0 must stand for different classes"),
        ([(0, 1, 2), (2, 3)], r"teacher 1 .* out of 0 to 2; got \[2, 3\]"),
        ([(0, 2), (2, 0)], "No teacher knows class 1 of the 3"),
    ]:
        with pytest.raises(RequestError, match=message):
            ClassMap(columns, 3)
