"""Generators: from noise to normalised images.

Both are always called with `training=True`: the batch's own statistics normalise.
"""

import keras
from keras import KerasTensor, layers, ops

from cdfkd_tf.errors import lookup
from cdfkd_tf.networks.layers import batch_norm, conv, cropped, scale_width


def build_generator(
    name: str,
    image_shape: tuple[int, int, int],
    latent_size: int,
    *,
    standardised: bool,
    width: float = 1.0,
    num_classes: int = 0,
) -> keras.Model:
    """The generator called `name`.

    Args:
        name: a key of `GENERATORS`.
        image_shape: `(height, width, channels)` of the images.
        latent_size: Z.
        standardised: True if the teachers see images of mean 0 and deviation 1 per
            channel: the generator then ends in a BatchNormalization without scale
            and shift. False if they see [-1, 1]: it ends in tanh.
        width: factor on the inner channels; 1 is the published generator.
        num_classes: C, of which the images are asked for, see `asked_classes`; 0: the
            generator chooses.

    Returns:
        A functional model from noise `(B, Z)`, or `(B, C + Z)`, standard normal, to
        normalised images `(B, *image_shape)`.

    Raises:
        RequestError: unknown name.
    """
    latent = noise = keras.Input((num_classes + latent_size,), name="latent")
    if num_classes:
        label = ops.one_hot(asked_classes(latent, num_classes), num_classes)
        # As long as the noise: else it is drowned in it.
        label = layers.Rescaling(latent_size**0.5)(label)
        noise = ops.concatenate([label, latent[:, num_classes:]], axis=-1)
    image = lookup(GENERATORS, name, "generator")(noise, image_shape, width)
    image = cropped(image, image_shape[:2], name="crop")
    image = conv(image, image_shape[-1], bias=True, name="image_conv")
    full = keras.config.floatx()  # under any policy
    image = layers.Activation("tanh", dtype=full, name="image_tanh")(image)
    if standardised:
        image = batch_norm(image, affine=False, dtype=full, name="image_bn")
    return keras.Model(latent, image, name=name)


def asked_classes(latent: KerasTensor, num_classes: int) -> KerasTensor:
    """The classes asked for by noise: where its first C numbers are largest.

    So they are as random as the noise, evenly spread, and follow from its seed.

    Args:
        latent: `(B, C + Z)`.
        num_classes: C.

    Returns:
        `(B,)`.
    """
    return ops.argmax(latent[:, :num_classes], axis=-1)


def dafl(
    latent: KerasTensor, image_shape: tuple[int, int, int], width: float
) -> KerasTensor:
    """Two nearest-neighbour doublings (Chen et al., DAFL, ICCV 2019).

    The two inner BatchNormalizations have epsilon 0.8, as published: it damps them,
    and training relies on it.

    Args:
        latent: `(B, Z)`.
        image_shape: `(height, width, channels)` to come.
        width: factor on the channels.

    Returns:
        Maps `(B, height, width, channels)`, sides rounded up to multiples of 4.
    """
    tensor = _project(latent, image_shape, scale_width(128, width), shrink=4)
    tensor = batch_norm(tensor, name="latent_bn")
    for index, filters in enumerate((128, 64), start=1):
        tensor = layers.UpSampling2D(2, name=f"up{index}")(tensor)
        tensor = conv(
            tensor, scale_width(filters, width), bias=True, name=f"up{index}_conv"
        )
        tensor = batch_norm(tensor, epsilon=0.8, name=f"up{index}_bn")
        tensor = layers.LeakyReLU(0.2, name=f"up{index}_relu")(tensor)
    return tensor


def dcgan(
    latent: KerasTensor, image_shape: tuple[int, int, int], width: float
) -> KerasTensor:
    """Four transposed convolutions of stride 2 (Radford et al., DCGAN, ICLR 2016).

    As `dafl`; sides are rounded up to multiples of 16.
    """
    tensor = _project(latent, image_shape, scale_width(512, width), shrink=16)
    tensor = batch_norm(tensor, name="latent_bn")
    for index, filters in enumerate((256, 128, 64, 64), start=1):
        tensor = layers.Conv2DTranspose(
            scale_width(filters, width),
            4,
            strides=2,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            name=f"up{index}_conv",
        )(tensor)
        tensor = batch_norm(tensor, name=f"up{index}_bn")
        tensor = layers.LeakyReLU(0.2, name=f"up{index}_relu")(tensor)
    return tensor


def _project(
    latent: KerasTensor,
    image_shape: tuple[int, int, int],
    channels: int,
    shrink: int,
) -> KerasTensor:
    """Noise as a small map `(B, height / shrink, width / shrink, channels)`.

    Sides that `shrink` does not divide are rounded up; the rest is cropped.
    """
    rows, columns = (-(-side // shrink) for side in image_shape[:2])
    tensor = layers.Dense(channels * rows * columns, name="latent_dense")(latent)
    # Channels first, as published checkpoints store the vector.
    tensor = layers.Reshape((channels, rows, columns), name="latent_map")(tensor)
    return layers.Permute((2, 3, 1), name="latent_map_last")(tensor)


GENERATORS = {"dafl": dafl, "dcgan": dcgan}
