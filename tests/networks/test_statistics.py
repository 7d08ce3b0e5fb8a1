"""BatchNormalization statistics of unlabelled images."""

import keras
import numpy as np

from cdfkd_tf.networks.statistics import reestimate
from cdfkd_tf.networks.students import build_student


def test_reestimate_sets_mean_and_variance_of_each_input():
    student = build_student("compact", (16, 16, 1), 3, 2, sharing="shared", width=0.25)
    images = np.random.default_rng(0).normal(2, 3, (21, 16, 16, 1)).astype("float32")
    norms = [
        layer
        for layer in student.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    kernels = [w.numpy() for w in student.trainable_weights]
    assert reestimate(student, images, batch_size=8) == len(norms) > 1
    seen = keras.Model(student.input, [norm.input for norm in norms])
    for norm, inputs in zip(norms, seen.predict(images, verbose=0), strict=True):
        mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
        np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-3, atol=1e-4)
    for kept, weight in zip(kernels, student.trainable_weights, strict=True):
        np.testing.assert_array_equal(kept, weight)
