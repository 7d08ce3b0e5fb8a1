"""Going through the layers of any Keras model."""

from collections.abc import Iterator

import keras


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Every layer that holds no other layers, at any depth, in order.

    Layers that contain layers (nested models, wrappers, one's own blocks) are gone
    through in turn.
    """
    for layer in getattr(model, "layers", None) or getattr(model, "_layers", []):
        inner = list(leaf_layers(layer))
        if inner:
            yield from inner
        else:
            yield layer


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """A model and every layer in it, at any depth, those with layers included."""
    return list(model._flatten_layers())


def variable_index(optimizer: keras.optimizers.Optimizer, variable) -> int:
    """The place of a variable among those that an optimiser was built for."""
    return optimizer._get_variable_index(variable)


def adam_slots(optimizer: keras.optimizers.Adam, variable) -> tuple:
    """Adam's running means of a variable's gradient and of its square."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


class WithoutSymbolicBuild:
    """A model that `fit` does not build by a symbolic call.

    There is nothing left to build, and Keras's way fails where hosts share a batch.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass
