"""Going through the layers of any Keras model."""

from collections.abc import Callable, Iterator

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


def random_state() -> Callable[[], None]:
    """Remembers TensorFlow's and Keras's global seeds and op determinism.

    Returns:
        A function that puts all of it back.
    """
    from keras.src.backend.common import global_state
    from keras.src.random import seed_generator
    from tensorflow.python.eager import context
    from tensorflow.python.framework import config

    names = (seed_generator.GLOBAL_SEED_GENERATOR, "global_random_seed")
    attributes = {name: global_state.get_global_attribute(name) for name in names}
    current = context.context()
    seed, rng = current._seed, current._rng
    deterministic = config.is_op_determinism_enabled()

    def restore() -> None:
        for name, value in attributes.items():
            global_state.set_global_attribute(name, value)
        current._seed, current._rng = seed, rng
        if not deterministic:
            config.disable_op_determinism()

    return restore
