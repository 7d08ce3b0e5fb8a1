"""Which examples are taken."""

import collections

import numpy as np

from cdfkd_tf.data.sampling import balanced_choice


def test_balanced_choice_takes_as_many_of_each_class_as_can_be():
    classes = np.array([0] * 50 + [1] * 6 + [3] * 6)
    chosen = classes[balanced_choice(classes, 15, seed=0)]
    assert collections.Counter(chosen.tolist()) == {0: 5, 1: 5, 3: 5}
    many = balanced_choice(classes, 40, seed=0)
    assert len(set(many.tolist())) == 40
    assert collections.Counter(classes[many].tolist()) == {0: 28, 1: 6, 3: 6}
    assert len(balanced_choice(classes, 100, seed=0)) == 62
