"""Fine-tuning under simulated eight-bit arithmetic, on invented images alone.

The network learns to say what it said in float32 while weights and activations are
rounded as the int8 file rounds them; gradients pass the rounding as if it were not
there (Jacob et al., CVPR 2018). The result is still a float network: the converter
quantises it as any other.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from cdfkd_tf.export.lean import walk

_WEIGHTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
# Their output has their input's scale in a TFLite file; softmax has a fixed one.
_SAME_SCALE = (layers.ZeroPadding2D, layers.MaxPooling2D, layers.Flatten)
_BATCH = 64
_LEARNING_RATE = 1e-5
_HELD_OUT = 0.25  # of the images: they decide whether the result is kept


def finetune_int8(
    model: keras.Model,
    images: np.ndarray,
    ranges_from: np.ndarray,
    *,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Moves `model`'s weights so that its int8 file keeps more of its answers.

    The weights stay as they were unless answers to held-out images get closer.

    Args:
        model: from `lean_predictor`; changed in place.
        images: `(n, height, width, channels)` in [0, 1], to learn and to decide on.
        ranges_from: the images that will calibrate the int8 file.
        steps: updates of 64 images.
        seed: of their order.

    Returns:
        Kullback-Leibler divergence from the float network's answers on held-out
        images, in nats: before, and of what is kept.
    """
    truth = model.predict(images, batch_size=256, verbose=0)
    simulated = _simulation(model, ranges_from)
    num_held_out = max(1, int(len(images) * _HELD_OUT))
    held_out = images[:num_held_out], truth[:num_held_out]
    learned = images[num_held_out:], truth[num_held_out:]
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
    )
    variables = model.trainable_variables
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def divergence(pixels, answers):
        said = ops.clip(simulated(pixels), 1e-7, 1.0)
        told = ops.clip(answers, 1e-7, 1.0)
        return ops.mean(ops.sum(told * (ops.log(told) - ops.log(said)), axis=-1))

    @tf.function(reduce_retracing=True)
    def update(pixels, answers):
        with tf.GradientTape() as tape:
            loss = divergence(pixels, answers)
        optimizer.apply(tape.gradient(loss, variables), variables)

    def measured():
        return float(divergence(*held_out))

    first = best = measured()
    kept = model.get_weights()
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        chosen = rng.integers(len(learned[0]), size=min(_BATCH, len(learned[0])))
        update(*(tf.constant(array[chosen]) for array in learned))
        if step % 25 == 0 or step == steps:
            now = measured()
            if now < best:
                best, kept = now, model.get_weights()
    model.set_weights(kept)
    return first, best


def _simulation(model: keras.Model, images: np.ndarray) -> Callable[[Any], Any]:
    """`model` as a function of images, with the int8 file's rounding."""
    ranges = _ranges(model, images)
    fused = _fused_with_relu(model)

    def apply(layer, inputs):
        rounded = isinstance(layer, _WEIGHTED)
        answer = _with_rounded_kernel(layer, inputs) if rounded else layer(inputs)
        if layer in fused or isinstance(layer, (*_SAME_SCALE, layers.Softmax)):
            return answer
        return tf.quantization.fake_quant_with_min_max_args(
            answer, *ranges[layer.name], num_bits=8
        )

    def simulated(pixels):
        # The input has 256 steps from 0 to 1, as grey values have.
        pixels = tf.quantization.fake_quant_with_min_max_args(pixels, 0, 1, num_bits=8)
        return walk(model, pixels, apply)[id(model.output)]

    return simulated


def _ranges(model, images) -> dict[str, tuple[float, float]]:
    """Layer name -> smallest and largest output over `images`, 0 included."""
    watched = [x for x in model.layers if not isinstance(x, layers.InputLayer)]
    probe = keras.Model(model.input, [layer.output for layer in watched])
    ranges = {layer.name: (0.0, 1e-6) for layer in watched}
    for start in range(0, len(images), 64):
        outputs = probe.predict_on_batch(images[start : start + 64])
        for layer, output in zip(watched, outputs):
            low, high = ranges[layer.name]
            ranges[layer.name] = (
                min(low, float(output.min())),
                max(high, float(output.max())),
            )
    return ranges


def _fused_with_relu(model) -> list[layers.Layer]:
    """Layers whose only reader is a rectifier: one operation in the file."""
    readers: dict[int, list] = {}
    for layer in model.layers:
        if not isinstance(layer, layers.InputLayer):
            for tensor in keras.tree.flatten(layer.input):
                readers.setdefault(id(tensor), []).append(layer)
    return [
        layer
        for layer in model.layers
        if [type(reader) for reader in readers.get(id(layer.output), [])]
        == [layers.ReLU]
    ]


def _with_rounded_kernel(layer, inputs):
    """The layer's answer with an eight-bit kernel, one scale per output channel."""
    is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
    kernel = layer.kernel.value
    shape = kernel.shape
    # Depthwise kernels have their channels third: (height, width, channels, 1).
    flat = tf.reshape(kernel, (-1, shape[2] if is_depthwise else shape[-1]))
    limit = tf.stop_gradient(tf.reduce_max(tf.abs(flat), axis=0))
    limit = tf.maximum(limit, 1e-6)
    flat = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        flat, -limit, limit, num_bits=8, narrow_range=True
    )
    kernel = tf.reshape(flat, shape)
    bias = layer.bias if layer.use_bias else 0.0
    if isinstance(layer, layers.Dense):
        return ops.matmul(inputs, kernel) + bias
    convolve = ops.depthwise_conv if is_depthwise else ops.conv
    return bias + convolve(inputs, kernel, strides=layer.strides, padding=layer.padding)
