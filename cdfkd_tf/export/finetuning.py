"""Fine-tuning under simulated eight-bit arithmetic, without real images.

The network learns to keep its float32 probabilities while weights and activations are
rounded as the int8 file rounds them; gradients pass the rounding as if it were not
there (Jacob et al., CVPR 2018). The result is still a float network: the converter
quantises it like any other.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from cdfkd_tf.export.runner import images_at_once, in_parts, probabilities

_WEIGHTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
# Their output has their input's scale in a TFLite file; softmax has a fixed one.
_POOLING = (layers.MaxPooling2D, layers.AveragePooling2D)
_RESHAPING = (layers.ZeroPadding2D, layers.Flatten, layers.Reshape)
# A model's own layers are rounded.
_NOT_ROUNDED = (*_POOLING, *_RESHAPING, layers.Softmax, keras.Model)
_BATCH = 64
_LEARNING_RATE = 1e-5
_HELD_OUT = 0.25  # of the images: they decide whether the result is kept


def finetune_int8(
    model: keras.Model,
    calibration: np.ndarray,
    images: np.ndarray,
    *,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Moves `model`'s weights so that its int8 file keeps more of its predictions.

    The weights stay as they were unless predictions of held-out images get closer.

    Args:
        model: from `inference_graph`; changed in place.
        calibration: images `(n, height, width, channels)` in [0, 1] that fix the value
            ranges of the int8 file.
        images: likewise, to learn and to decide on.
        steps: updates of 64 images.
        seed: of their order.

    Returns:
        Kullback-Leibler divergence from the float network's probabilities on held-out
        images, in nats: before, and of what is kept.
    """
    targets = probabilities(model, images)
    simulated = _simulation(model, calibration)
    at_once = min(_BATCH, images_at_once(*images.shape[1:3]))
    num_held_out = max(1, int(len(images) * _HELD_OUT))
    parts = np.array_split(np.arange(num_held_out), -(-num_held_out // at_once))
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
    )
    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def divergences(images, targets):
        # The input has 256 steps from 0 to 1, as grey values have.
        images = tf.quantization.fake_quant_with_min_max_args(images, 0, 1, num_bits=8)
        outputs = simulated(images, training=False)
        return keras.losses.kl_divergence(targets, outputs)

    @tf.function(reduce_retracing=True)
    def update(images, targets):
        with tf.GradientTape() as tape:
            loss = ops.mean(divergences(images, targets))
        optimizer.apply(tape.gradient(loss, variables), variables)

    def divergence_of_held_out() -> float:
        found = [divergences(images[part], targets[part]) for part in parts]
        return float(np.mean(np.concatenate(found)))

    first = best = divergence_of_held_out()
    kept = model.get_weights()
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        chosen = rng.integers(num_held_out, len(images), size=at_once)
        update(tf.constant(images[chosen]), tf.constant(targets[chosen]))
        if step % 25 == 0 or step == steps:
            now = divergence_of_held_out()
            if now < best:
                best, kept = now, model.get_weights()
    model.set_weights(kept)
    return first, best


def _simulation(model: keras.Model, calibration: np.ndarray) -> keras.Model:
    """`model` with the int8 file's rounding, sharing its variables."""
    roundings: list[_Rounding] = []
    unrounded: dict[int, tuple[Any, Any]] = {}  # id of a tensor -> it, its origin

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, layers.ReLU):  # one operation with the layer before
            args = [unrounded.get(id(tensor), (tensor, tensor))[1] for tensor in args]
        is_weighted = isinstance(layer, _WEIGHTED)
        output = (_RoundedWeights(layer) if is_weighted else layer)(*args, **kwargs)
        if isinstance(layer, _NOT_ROUNDED):
            return output
        roundings.append(_Rounding())
        rounded = roundings[-1](output)
        unrounded[id(rounded)] = rounded, output
        return rounded

    simulated = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call, recursive=True
    )
    for rounding in roundings:
        rounding.observes = True
    for part in in_parts(calibration):
        simulated(part, training=False)
    for rounding in roundings:
        rounding.observes = False
    return simulated


class _Rounding(layers.Layer):
    """Rounds to 256 levels from the smallest to the largest value observed, and 0."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.observes = 0.0, 1e-6, False

    def call(self, inputs):
        if self.observes:
            self.low = min(self.low, float(ops.min(inputs)))
            self.high = max(self.high, float(ops.max(inputs)))
            return inputs
        return tf.quantization.fake_quant_with_min_max_args(
            inputs, self.low, self.high, num_bits=8
        )

    def compute_output_shape(self, input_shape):
        return input_shape  # and dense, whatever Keras calls the product with a number


class _RoundedWeights(layers.Layer):
    """A layer whose kernel has eight bits, one scale per output channel."""

    def __init__(self, layer: layers.Layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs, **kwargs):
        variables = self.layer.trainable_variables
        kernel = self.layer.kernel
        values = [self._rounded(v) if v is kernel else v.value for v in variables]
        return self.layer.stateless_call(values, [], inputs, **kwargs)[0]

    def _rounded(self, kernel):
        # Depthwise kernels have their channels third: (height, width, channels, 1).
        is_depthwise = isinstance(self.layer, layers.DepthwiseConv2D)
        flat = tf.reshape(kernel.value, (-1, kernel.shape[2 if is_depthwise else -1]))
        limit = tf.stop_gradient(tf.reduce_max(tf.abs(flat), axis=0))
        limit = tf.maximum(limit, 1e-6)
        flat = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            flat, -limit, limit, num_bits=8, narrow_range=True
        )
        return tf.reshape(flat, kernel.shape)
