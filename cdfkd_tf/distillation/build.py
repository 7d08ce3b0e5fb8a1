"""The engine of one run: what learns, on which devices, and what of it is kept."""

import keras
import tensorflow as tf

from cdfkd_tf.assembly import Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.adversarial import AdversarialDistiller
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.distillation.suiting import build_projection, suit_method
from cdfkd_tf.runtime.devices import (
    check_shares,
    choose_strategy,
    choose_xla,
    synchronise,
)
from cdfkd_tf.runtime.fused_batchnorm import fuse_layers
from cdfkd_tf.runtime.keras_internals import leaf_layers
from cdfkd_tf.runtime.precision import dtype_policy


def build_distiller(
    assembly: Assembly, strategy: tf.distribute.Strategy | None = None
) -> Distiller:
    """Fresh student, and generator if any, with their optimisers.

    Args:
        assembly: what the run is made of.
        strategy: devices that train together; None: as the request says.

    Raises:
        RequestError: what does not fit together, see `suit_method` and
            `choose_strategy`.
    """
    config = assembly.config
    if strategy is None:
        strategy = choose_strategy(config.strategy, config.batch_size)
    check_shares(config.batch_size, strategy.num_replicas_in_sync)
    _ = assembly.teachers  # loaded by now: they never change, and belong to no replica
    with strategy.scope():
        distiller = _build(assembly)
    if strategy.num_replicas_in_sync > 1:
        for network in _networks_of(distiller).values():
            synchronise(network)
    return distiller


def _build(assembly: Assembly) -> Distiller:
    config, teachers, method = assembly.config, assembly.teachers, assembly.method
    keras.utils.set_random_seed(config.seed)
    with dtype_policy(config.dtype_policy):
        student = assembly.build_student()
        generator = assembly.build_generator() if method.generator else None
    method = suit_method(
        method,
        teachers,
        student,
        asked=assembly.asked_terms,
        project=config.project_features,
    )
    projection = None
    if config.project_features and method.student.get("feature"):
        projection = build_projection(student, teachers, config.seed)
    sgd = _scaled(
        CoupledSGD(config.student_learning_rate, nesterov=config.nesterov), config
    )
    wishes = {
        "clip_gradients": config.clip_gradients,
        "xla": choose_xla(
            config.jit_compile,
            config.deterministic == "true",
            tf.distribute.get_strategy(),
        ),
    }
    for network in filter(None, (student, generator)):
        fuse_layers(leaf_layers(network))
    more = {"projection": projection, "teacher_policy": _teacher_policy(config)}
    if not generator:
        distiller = Distiller(student, teachers, method, **more)
        distiller.compile(sgd, **wishes)
        return distiller
    distiller = AdversarialDistiller(
        student, teachers, method, generator, low_memory=config.low_memory, **more
    )
    adam = PaperAdam(config.generator_learning_rate, beta_1=config.generator_beta1)
    distiller.compile(sgd, _scaled(adam, config), **wishes)
    return distiller


def _teacher_policy(config: RunConfig) -> str | None:
    """What teachers compute in; None: as their files say, which is float32."""
    policy = config.teacher_dtype_policy
    policy = config.dtype_policy if policy == "auto" else policy
    return None if policy == "float32" else policy


def _scaled(
    optimizer: keras.optimizers.Optimizer, config: RunConfig
) -> keras.optimizers.Optimizer:
    """Float16 has no room for small gradients: they are computed of a scaled loss."""
    if config.dtype_policy != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def networks_to_keep(
    assembly: Assembly, distiller: Distiller
) -> dict[str, keras.Model]:
    """Student and generator, if any, in float32, whatever they were trained in.

    Devices and converters know no half precision, and one device needs no other.

    Args:
        assembly: what the run is made of.
        distiller: trained.
    """
    trained = _networks_of(distiller)
    builders = {
        "student": assembly.build_student,
        "generator": assembly.build_generator,
    }
    alone = distiller.num_replicas == 1
    if assembly.config.dtype_policy == "float32" and alone:
        return trained
    kept = {name: builders[name]() for name in trained}
    for name, copy in kept.items():
        copy.set_weights(trained[name].get_weights())
    return kept


def _networks_of(distiller: Distiller) -> dict[str, keras.Model]:
    return {
        name: network
        for name, network in distiller.state.items()
        if name in ("student", "generator")
    }
