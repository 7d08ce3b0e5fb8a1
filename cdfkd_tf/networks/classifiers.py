"""Plain classifiers: the networks trained as teachers."""

import keras
from keras import layers

from cdfkd_tf.errors import lookup
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.pixel_ranges import INPUT_NAME


def build_classifier(
    backbone: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: float = 1.0,
    input_name: str = INPUT_NAME,
) -> keras.Model:
    """Backbone, global average pooling and one Dense layer.

    Args:
        backbone: a key of `BACKBONES`.
        image_shape: `(height, width, channels)` of a normalised image.
        num_classes: C.
        width: factor on the backbone's channels.
        input_name: of the images; the default tells that they are normalised.

    Returns:
        A functional model from normalised images `(B, *image_shape)` to logits
        `(B, C)`.

    Raises:
        RequestError: unknown backbone.
    """
    image = keras.Input(image_shape, name=input_name)
    trunk = lookup(BACKBONES, backbone, "network")(image, width)
    last_map = trunk.finish(trunk.maps[-1], "")
    features = layers.GlobalAveragePooling2D(name="features")(last_map)
    logits = layers.Dense(num_classes, name="logits", dtype=keras.config.floatx())
    return keras.Model(image, logits(features), name=backbone)
