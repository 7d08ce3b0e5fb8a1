"""From the options of a run to its distiller: names become objects here, once."""

import dataclasses
import warnings
from collections.abc import Collection, Mapping

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.data.transfer_set import kinds_of, mixture
from cdfkd_tf.distillation.bank import BankedImages, automatic_size, fill
from cdfkd_tf.distillation.boosting import Boosting
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.fitting import FittedImages, InvertedImages, LatentImages
from cdfkd_tf.distillation.image_source import (
    OBSERVED,
    DatasetImages,
    GeneratedImages,
    ImageSource,
)
from cdfkd_tf.distillation.losses import TERMS, Objective
from cdfkd_tf.distillation.methods import METHODS, Method
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.distillation.replay import ReplayedImages
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.networks import generators, students
from cdfkd_tf.networks.backbones import AUTOMATIC_BACKBONE, find_backbone
from cdfkd_tf.runtime import fused_batchnorm
from cdfkd_tf.runtime.devices import (
    check_shares,
    choose_strategy,
    choose_xla,
    synchronise,
)
from cdfkd_tf.runtime.keras_internals import leaf_layers
from cdfkd_tf.runtime.precision import dtype_policy
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.hooks import BY_BATCH
from cdfkd_tf.teachers.rules import doubts
from cdfkd_tf.workdir import Workdir

_ASKING = 0.15  # of --minutes, for drawing images and teachers' answers, at most
_PART = 1024  # rows of answers that are joined at once
HELD_OUT_IMAGES = 4 * OBSERVED  # to judge the student by, at the end
_SYNTHESIS_STEPS = 200
HELD_OUT = 10_000_019  # on the seed, for transfer images of no training step


def build_method(config: RunConfig) -> Method:
    """The method's row with the weights of the request.

    Raises:
        RequestError: an unknown term, a weight for a generator that the method does
            not have, a student without any term, a temperature without softmaxes,
            sources of images that do not go together.
    """
    method, weights = _with_images(METHODS[config.method], config), {}
    for role, given in _given_weights(config).items():
        known = method.weights(role)
        for term, weight in given.items():
            terms = [name for name, row in TERMS.items() if role in row.roles]
            if term not in terms:
                raise RequestError(
                    f"--{role}_loss knows {', '.join(terms)}; got {term!r}."
                )
            if weight and not known:
                raise RequestError(
                    f"--{role}_loss={term}={weight:g}, but --method={config.method} "
                    f"has no {role}. Leave the flag out, or choose another --method."
                )
        weights[role] = {**known, **given} if known else {}
    if not any(weights["student"].values()):
        raise RequestError(
            "The student has nothing to learn: all its weights are 0. Give one of "
            "--student_loss=header=1, --student_loss=ensemble=1."
        )
    if config.temperature and method.divergence != "kl":
        raise RequestError(
            f"--temperature={config.temperature} softens softmaxes, and "
            f"--method={config.method} compares logits. Leave it out."
        )
    return dataclasses.replace(
        method,
        **weights,
        temperature=config.temperature or method.temperature,
        adversarial_on=config.adversarial_on or method.adversarial_on,
    )


def _with_images(method: Method, config: RunConfig) -> Method:
    """The row with the request's sources of images."""
    images = config.images or method.images
    alone = [name for name in ("real", "generated", "inverted") if name in images]
    if len(images) > 1 and alone and alone != ["generated"] and alone != ["inverted"]:
        raise RequestError(
            f"--images={','.join(images)}: real images stand alone, generated and "
            "inverted ones without each other; all else can be mixed. Name fewer."
        )
    if not {"generated", "inverted"} & set(images):
        return dataclasses.replace(method, images=images, generator={})
    if not method.generator:
        raise RequestError(
            f"--images={','.join(images)}, but --method={config.method} has no "
            "generator. Choose another --method, as cdfkd_mfs."
        )
    if config.conditional_generator and (method.fits or "inverted" in images):
        raise RequestError(
            f"--conditional_generator, but --method={config.method} with --images="
            f"{','.join(images)} asks for classes by itself. Leave it out."
        )
    return dataclasses.replace(method, images=images)


def build_student(
    config: RunConfig, spec: DatasetSpec, num_teachers: int
) -> keras.Model:
    """A fresh student, its headers shared as method and request say.

    Args:
        config: the request.
        spec: of the images.
        num_teachers: T.

    Returns:
        See `students.build_student`; 1 header, or T.

    Raises:
        RequestError: as `find_backbone` and `students.build_student`.
    """
    sharing = config.student_headers or METHODS[config.method].sharing
    backbone = AUTOMATIC_BACKBONE if config.student == "auto" else config.student
    return students.build_student(
        find_backbone(backbone, spec, config.student_feature_layers),
        spec.image_shape,
        spec.num_classes,
        1 if sharing == "single" else num_teachers,
        sharing=sharing,
        width=config.student_width or 1.0,  # None: not known before the teachers are
    )


def build_generator(config: RunConfig, spec: DatasetSpec) -> keras.Model:
    """A fresh generator of normalised images `(B, *spec.image_shape)` from noise.

    Raises:
        RequestError: see `generators.build_generator`.
    """
    return generators.build_generator(
        config.generator,
        spec.image_shape,
        config.latent_size,
        standardised=spec.standardised,
        width=config.generator_width,
        num_classes=spec.num_classes if config.conditional_generator else 0,
    )


def build_distiller(
    config: RunConfig,
    spec: DatasetSpec,
    teachers: TeacherEnsemble,
    real_images: RealImages,
    strategy: tf.distribute.Strategy | None = None,
) -> Distiller:
    """Fresh student and image source with their optimisers.

    Args:
        config: the request.
        spec: of the images.
        teachers: frozen; they belong to no replica.
        real_images: of the data set, for methods that learn from them.
        strategy: devices that train together; None: as the request says.

    Raises:
        RequestError: what does not fit together.
    """
    if strategy is None:
        strategy = choose_strategy(config.strategy, config.batch_size)
    check_shares(config.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        distiller = _build(config, spec, teachers, real_images)
    if strategy.num_replicas_in_sync > 1:
        for part in distiller.state.values():
            if isinstance(part, keras.Model):
                synchronise(part)
    return distiller


def _build(config, spec, teachers, real_images) -> Distiller:
    keras.utils.set_random_seed(config.seed)
    with dtype_policy(config.dtype_policy):
        student = build_student(config, spec, len(teachers))
        has_generator = build_method(config).has_generator
        generator = build_generator(config, spec) if has_generator else None
    fused_batchnorm.use(config.fused_kernels)
    for network in filter(None, (student, generator)):
        fused_batchnorm.fuse_layers(leaf_layers(network))
    method = available_method(config, teachers, student)
    projection = None
    if config.project_features and method.student.get("feature"):
        projection = build_projection(student, teachers, config.seed)
    # As their files say where they are asked for in float32.
    policy = config.teacher_dtype_policy
    policy = config.dtype_policy if policy == "auto" else policy
    teachers.optimise_for_inference(None if policy == "float32" else policy)
    networks = student, teachers, generator
    source = _build_source(config, spec, method, networks, real_images)
    distiller = Distiller(student, teachers, method, source, projection=projection)
    optimizer = CoupledSGD(config.student_learning_rate, nesterov=config.nesterov)
    distiller.compile(
        _scaled(optimizer, config),
        clip_gradients=config.clip_gradients,
        xla=choose_xla(
            config.jit_compile,
            config.deterministic == "true",
            tf.distribute.get_strategy(),
        ),
    )
    return distiller


def _build_source(config, spec, method, networks, real) -> ImageSource:
    _, teachers, _ = networks
    if "real" in method.images:
        return DatasetImages(real, config.batch_size, config.seed)
    kept = bank_size(config, spec, method)
    if not method.generator:
        return _banked(config, spec, method, teachers, kept)
    make = _fitted if method.fits or "inverted" in method.images else _generated
    generated = make(config, spec, method, *networks)
    if not kept:
        return generated
    mixed = len(method.images) > 1
    return ReplayedImages(
        generated,
        teachers,
        size=kept // 2 if mixed else kept,
        student_steps=config.student_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        features=_reads_features(method),
        fixed=_banked(config, spec, method, teachers, kept // 2) if mixed else None,
    )


def _reads_features(method) -> bool:
    """Whether the student does, or what compares new images with kept ones."""
    roles = ("student", "generator")
    needs = frozenset().union(*(Objective(role, method).needs for role in roles))
    return not needs.isdisjoint({"features", "views"})


def _fitted(config, spec, method, student, teachers, generator) -> FittedImages:
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise RequestError(
            f"--method={config.method} with --images={','.join(method.images)} fits "
            "images on one device. Use --strategy=one_device."
        )
    options = {
        "num_classes": spec.num_classes,
        "num_steps": config.synthesis_steps or _SYNTHESIS_STEPS,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    if method.boosts:
        ends = (spec.normalise(np.full(spec.image_shape[-1:], x)) for x in (8 / 255, 0))
        step = np.subtract(*map(np.asarray, ends)).astype(keras.config.floatx())
        options["boosting"] = Boosting(teachers, step)
    fixed = teachers, Objective("generator", method), student
    if generator is None:
        return InvertedImages(*fixed, image_shape=spec.image_shape, **options)
    fresh = method.fresh
    return LatentImages(generator, _adam(config), *fixed, fresh=fresh, **options)


def _adam(config) -> PaperAdam:
    return PaperAdam(config.generator_learning_rate, beta_1=config.generator_beta1)


def _generated(config, spec, method, student, teachers, generator) -> GeneratedImages:
    return GeneratedImages(
        generator,
        teachers,
        Objective("generator", method),
        _scaled(_adam(config), config),
        student_steps=(1 if bank_size(config, spec, method) else config.student_steps),
        batch_size=config.batch_size,
        seed=config.seed,
        clip_gradients=config.clip_gradients,
        recompute=config.recompute_teachers,
        num_classes=spec.num_classes if config.conditional_generator else 0,
        mean_decay=config.generator_mean,
    )


def _banked(config, spec, method, teachers, count) -> BankedImages:
    kinds = kinds_of(method.images, config.transfer_images)
    bank = fill(
        kinds,
        count,
        teachers,
        spec,
        Workdir(config.workdir).bank,
        batch_size=config.batch_size,
        features=_reads_features(method),
        needs=frozenset({BY_BATCH} if method.batch_statistics else ()),
        seconds=_seconds_to_ask(config),
        seed=config.seed,
    )
    known_as = spec.class_names or range(spec.num_classes)
    names = [teacher.name for teacher in teachers.teachers]
    for doubt in doubts(teachers.rule, bank.logits, names, known_as):
        warnings.warn(doubt, DistillationWarning, stacklevel=2)
    starts = range(0, len(bank.logits), _PART)
    parts = (bank.logits[start:][:_PART] for start in starts)
    classes = [np.argmax(teachers.combined(part), axis=-1) for part in parts]
    return BankedImages(
        bank,
        np.concatenate(classes),
        spec,
        student_steps=config.student_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        held_out=mixture(
            kinds,
            bank.shares,
            HELD_OUT_IMAGES,
            spec.image_shape,
            config.seed + HELD_OUT,
        ),
    )


def _seconds_to_ask(config: RunConfig) -> float | None:
    """None: any. Hosts must ask about the same images, whatever their clocks say."""
    if not config.minutes or config.bank_size or config.strategy == "multi_worker":
        return None
    return _ASKING * 60 * config.minutes


def bank_size(config: RunConfig, spec: DatasetSpec, method: Method) -> int:
    """How many images are kept with the teachers' answers; 0: none are.

    Args:
        config: whose `bank_size` is taken, or else `automatic_size`.
        spec: of the images.
        method: with the request's images, from `build_method`.
    """
    if not keeps_answers(config, method):
        return 0
    return config.bank_size or automatic_size(spec, config.minutes)


def keeps_answers(config: RunConfig, method: Method) -> bool:
    """Whether images are kept with the teachers' answers and learned from again.

    Generated images alone are not, unless asked for: the papers' are learned from once.
    """
    if "real" in method.images:
        return False
    alone = method.images == ("generated",) and not method.fits
    return bool(config.bank_size) or not alone


def _given_weights(config: RunConfig) -> dict[str, Mapping[str, float]]:
    """Role -> the weights that the request names."""
    return {"student": config.student_loss, "generator": config.generator_loss}


def _scaled(
    optimizer: keras.optimizers.Optimizer, config: RunConfig
) -> keras.optimizers.Optimizer:
    """Float16 has no room for small gradients: they are computed of a scaled loss."""
    if config.dtype_policy != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def available_method(
    config: RunConfig, teachers: TeacherEnsemble, student: keras.Model
) -> Method:
    """What of the method these teachers and this student can do.

    Args:
        config: the request.
        teachers: frozen.
        student: a stack of headers.

    Raises:
        RequestError: see `build_method` and `drop_unavailable_terms`; a generator that
            would learn from teachers that pass no gradient.
    """
    method = build_method(config)
    for teacher in teachers.teachers if method.generator else ():
        if "gradient" not in teacher.provides:
            raise RequestError(
                f"No gradient reaches the images of teacher {teacher.name}, and the "
                "generator learns from it: it only answers, or inside a cast to whole "
                "numbers, rounding or an argmax lets none through. Use "
                "--images=procedural, which needs none, or save the part behind it."
            )
    if method.student.get("attention") and keeps_answers(config, method):
        raise RequestError(
            "--student_loss=attention reads the teachers' feature maps, and images are "
            "kept with logits and features alone. Leave it out, or use "
            "--images=generated without --bank_size."
        )
    missing = unavailable(teachers, student, project=config.project_features)
    if not method.fits and "inverted" not in method.images:
        missing["views"] = (
            "only of images that are fitted the teachers see a piece, too. Use "
            "--method=cmi, or --images=inverted."
        )
    return drop_unavailable_terms(method, missing, _given_weights(config))


def unavailable(
    teachers: TeacherEnsemble, student: keras.Model, *, project: bool = False
) -> dict[str, str]:
    """What terms may need and these teachers and this student do not provide.

    Args:
        teachers: frozen.
        student: a stack of headers.
        project: whether features of other widths are reached by a learned map.

    Returns:
        Need -> why it is missing and what helps.
    """
    missing = {}
    num_headers, width = student.output["features"].shape[1:]
    if num_headers != len(teachers):
        missing["header_per_teacher"] = (
            f"the student has {num_headers} headers and there are {len(teachers)} "
            "teachers. Use --student_headers=multi_level or split."
        )
    widths = [teacher.feature_width for teacher in teachers.teachers]
    if None in widths:
        name = teachers.teachers[widths.index(None)].name
        missing["features"] = (
            f"teacher {name} shows no features (no Dense layer). Name a layer with "
            "--teacher_features."
        )
    elif set(widths) != {width} and not project:
        missing["features"] = (
            f"the student's features are {width} wide, the teachers' "
            f"{sorted(set(widths))}. --project_features learns a map between them."
        )
    for need, what in (
        ("bn_statistics", "no teacher has BatchNormalization (or shows it)"),
        ("feature_maps", "no teacher shows its feature maps"),
    ):
        if not any(need in teacher.provides for teacher in teachers.teachers):
            missing[need] = f"{what}."
    return missing


def drop_unavailable_terms(
    method: Method,
    missing: Mapping[str, str],
    given: Mapping[str, Collection[str]],
) -> Method:
    """Drops loss terms that the given teachers or student cannot provide.

    Warns of each. The only place where a term is dropped.

    Args:
        method: the row, with the request's weights.
        missing: from `unavailable`.
        given: role -> terms whose weights the request names; these are refused, not
            dropped.

    Raises:
        RequestError: a term that was asked for, one that needs another number of
            headers, or one without which a role has nothing to minimise.
    """
    kept = {role: dict(method.weights(role)) for role in ("student", "generator")}
    for role, weights in kept.items():
        for term in [term for term, weight in weights.items() if weight]:
            why = [missing[n] for n in sorted(TERMS[term].needs) if n in missing]
            if not why:
                continue
            weights[term] = 0.0
            # A wrong number of headers is a choice, not what teachers happen to lack.
            chosen = "header_per_teacher" in TERMS[term].needs & missing.keys()
            if chosen or term in given[role] or not any(weights.values()):
                raise RequestError(
                    f"The {role}'s {term} term cannot be had: {why[0]} Or use "
                    f"--{role}_loss={term}=0 and leave another term."
                )
            effect = (
                " Nothing keeps generated images near the training data, so expect a "
                "worse student. Watch samples/."
                if term in ("bn", "bn_mean")
                else ""
            )
            warnings.warn(
                f"The {role} learns without the {term} term: {why[0]}{effect}",
                DistillationWarning,
                stacklevel=2,
            )
    return dataclasses.replace(method, **kept)


def build_projection(
    student: keras.Model, teachers: TeacherEnsemble, seed: int
) -> keras.Model:
    """Linear maps from each header's features to its teacher's width.

    Args:
        student: with as many headers, H, as there are teachers.
        teachers: that all show features.
        seed: of the maps; each header's own follows from it.

    Returns:
        A model from `(B, H, W)` to a list of H tensors `(B, W_i)`.
    """
    features = keras.Input(student.output["features"].shape[1:], name="features")
    maps = [
        keras.layers.Dense(
            teacher.feature_width,
            use_bias=False,
            kernel_initializer=keras.initializers.GlorotUniform(seed + header),
            name=f"header{header}_projection",
        )(features[:, header])
        for header, teacher in enumerate(teachers.teachers)
    ]
    return keras.Model(features, maps, name="projection")


def networks_of(distiller: Distiller) -> dict[str, keras.Model]:
    """The networks that a run leaves: `student`, and `generator` if there is one."""
    generator = distiller.source.state.get("generator")
    found = {"student": distiller.student, "generator": generator}
    return {name: network for name, network in found.items() if network is not None}


def networks_to_keep(
    config: RunConfig, spec: DatasetSpec, distiller: Distiller
) -> dict[str, keras.Model]:
    """Trained student and generator, if any, as plain float32 networks of one device.

    Devices and converters know no half precision; fused kernels and replicas leave
    traces in the networks that trained.

    Returns:
        `student`, normalised images to a stack of headers, and `generator`, noise to
        normalised images.
    """
    builders = {
        "student": lambda: build_student(config, spec, len(distiller.teachers)),
        "generator": lambda: build_generator(config, spec),
    }
    kept = {}
    for name, trained in networks_of(distiller).items():
        kept[name] = builders[name]()
        kept[name].set_weights(trained.get_weights())
    return kept
