"""Images fitted to the teachers: what moves, how far, and towards what."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.boosting import Boosting
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.fitting import InvertedImages, LatentImages, pieces
from cdfkd_tf.distillation.losses import Objective, hard_cross_entropy
from cdfkd_tf.distillation.optimizers import CoupledSGD
from cdfkd_tf.distillation.replay import ReplayedImages
from cdfkd_tf.networks.generators import asked_classes
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests import toys

BATCH = 8


@pytest.fixture(scope="module")
def networks():
    keras.utils.set_random_seed(0)
    teachers = TeacherEnsemble([toys.classifier(seed=seed) for seed in (1, 2)])
    return teachers, toys.student(1)


def _options(networks, weights, num_steps, row="deepinversion"):
    teachers, student = networks
    objective = Objective("generator", toys.method(row, generator=weights))
    options = {"num_classes": toys.CLASSES, "num_steps": num_steps}
    return (teachers, objective, student), {**options, "batch_size": BATCH, "seed": 3}


def _inverted(networks, weights, num_steps):
    args, options = _options(networks, weights, num_steps)
    return InvertedImages(*args, image_shape=toys.SHAPE, **options)


def _element(source):
    return next(iter(source.dataset(0)))


def test_pixels_start_from_noise_and_move_by_adam(networks):
    """Of two steps the second is the better: each pixel is nearer to 0 by the rate."""
    noise = _element(_inverted(networks, {"l2": 1.0}, 2))
    pixels = noise[:, 0, toys.CLASSES :].numpy().reshape(BATCH, *toys.SHAPE)
    first, second = (
        _inverted(networks, {"l2": 1.0}, steps).next_batches(noise).images[0]
        for steps in (1, 2)
    )
    np.testing.assert_array_equal(first, pixels)
    expected = pixels - 0.1 * np.sign(pixels)
    np.testing.assert_allclose(second, expected, rtol=1e-3, atol=1e-4)


def test_fitted_images_show_the_teachers_the_asked_classes(networks):
    source = _inverted(networks, {"cross_entropy": 1.0}, 30)
    element = _element(source)
    labels = np.asarray(asked_classes(element[:, 0], toys.CLASSES))

    def misfit(images):
        logits = np.array(networks[0](images).logits).mean(1)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return -np.log((p / p.sum(-1, keepdims=True))[np.arange(BATCH), labels]).mean()

    start = element[:, 0, toys.CLASSES :].numpy().reshape(BATCH, *toys.SHAPE)
    fitted = tf.function(source.next_batches)(element).images[0]
    assert misfit(fitted) < misfit(start)


def test_inverted_images_are_seen_shifted_and_mirrored_all_alike(networks):
    source, images = _inverted(networks, {"l2": 1.0}, 1), toys.images(2)
    variants = {
        (down, right, mirror): np.roll(images, (down, right), (1, 2))[:, :, ::mirror]
        for down in range(-2, 3)
        for right in range(-2, 3)
        for mirror in (1, -1)
    }
    seen = set()
    for seed in range(40):
        varied = source.vary(tf.constant(images), tf.constant([seed, 0])).numpy()
        seen |= {key for key, one in variants.items() if np.array_equal(one, varied)}
    assert len(seen) > 20


def test_generator_moves_towards_where_its_copy_ended(networks):
    """One step of Adam moves each weight by its rate; of SGD then by a part of it."""
    keras.utils.set_random_seed(0)
    generator, sgd = toys.generator(), keras.optimizers.SGD(0.01)
    args, options = _options(networks, {"bn": 1.0, "ensemble": -1.0}, 1, row="fast")
    source = LatentImages(generator, sgd, *args, **options)
    before, element = generator.get_weights(), _element(source)
    images = source.next_batches(element).images[0]
    latents = element[:, 0, toys.CLASSES :]
    moved = np.abs(generator.get_weights()[0] - before[0])
    np.testing.assert_allclose(np.median(moved), 0.01 * 0.01, rtol=1e-2)
    generator.set_weights(before)
    np.testing.assert_allclose(
        images, generator(latents, training=True), rtol=1e-4, atol=1e-5
    )
    assert len(next(source.observe())) == BATCH
    assert set(source.state) == {"generator", "generator_optimizer"}


def _one_shot(networks, row, **more):
    keras.utils.set_random_seed(0)
    generator, adam = toys.generator(), keras.optimizers.Adam(1e-3)
    teachers, _ = networks
    args, options = _options(networks, toys.method(row).generator, 2, row=row)
    if toys.method(row).boosts:
        more["boosting"] = Boosting(teachers, np.full(1, 0.1, "float32"))
    source = LatentImages(generator, adam, *args, fresh=True, **options, **more)
    ring = {"size": 2 * BATCH, "student_steps": 1, "batch_size": BATCH, "seed": 0}
    return ReplayedImages(source, teachers, **ring, features=row == "cmi")


def test_fresh_generators_start_from_the_first_weights_mixed(networks):
    kept = _one_shot(networks, "dense")
    source, first = kept.generated, kept.generated.generator.get_weights()
    elements = list(source.dataset(0).take(2))
    starts = [
        source.start(e[:, 0, toys.CLASSES :], source.seed_of(e)) for e in elements
    ]
    kernels = [values[1].numpy() for values, _ in starts]
    assert (kernels[0] != kernels[1]).any() and (kernels[0] != first[0]).any()
    for kernel in kernels:
        np.testing.assert_array_equal(np.sort(kernel, None), np.sort(first[0], None))
    assert [float(rate) for rate in starts[0][1]] == pytest.approx([1e-3] * 3)
    images = kept.next_batches(next(iter(kept.dataset(0)))).images
    assert np.isfinite(images).all()
    moved = np.abs(source.generator.get_weights()[0] - kernels[0]).max()
    assert 0 < moved <= 2.1e-3  # two steps of Adam from the first start


def test_boosting_moves_weights_and_kept_images_by_their_formulas(networks):
    kept = _one_shot(networks, "coboosting")
    noise, *rest = next(iter(kept.dataset(0)))
    made = kept.generated.next_batches(noise).images[0].numpy()
    batch = kept.next_batches((noise, *rest))
    ring, labels = kept.ring, kept.generated.labels(noise).numpy()
    np.testing.assert_array_equal(ring.classes[:BATCH], labels)
    far = np.abs(np.array(ring.images)[:BATCH].astype("float32") - made)
    np.testing.assert_allclose(far[far > 0.01], 0.1, atol=2e-3)
    logits = np.array(ring.answers[0])[:BATCH]
    joined = logits.mean(1)  # the weights were equal
    shares = np.exp(joined - joined.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    gradient = np.einsum("nc,ntc->t", shares - np.eye(toys.CLASSES)[labels], logits)
    weights = np.array(kept.state["teacher_weights"].values)
    expected = 0.5 - 0.01 * 0.99 * np.sign(gradient)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    drawn = np.array(batch.teachers.logits)[0]
    distances = np.abs(drawn[:, None] - logits * 2 * weights[:, None]).max((2, 3))
    assert distances.min(1).max() < 1e-4


def test_hard_cross_entropy_counts_what_is_wrong():
    logits, labels = np.log([[0.9, 0.1], [0.2, 0.8]]).astype("float32"), [0, 0]
    expected = -(0.1 * np.log(0.9) + 0.8 * np.log(0.2)) / 2
    with tf.GradientTape() as tape:
        variable = tf.Variable(logits)
        value = hard_cross_entropy(variable, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slopes = np.array([0.1, 0.8])[:, None] * ([[0.9, 0.1], [0.2, 0.8]] - np.eye(2)[0])
    np.testing.assert_allclose(tape.gradient(value, variable), slopes / 2, rtol=1e-4)


def test_pieces_of_even_ramps_are_ramps_of_half_the_range_or_more():
    ramp = np.linspace(0, 1, 9, dtype="float32")[None, None, :, None]
    images = np.broadcast_to(ramp, (50, 9, 9, 1))
    seen = pieces(tf.constant(images), tf.constant([0, 1])).numpy()[..., 0]
    np.testing.assert_allclose(seen, np.broadcast_to(seen[:, :1], seen.shape))
    rows = seen[:, 0]
    assert rows.min() >= 0 and rows.max() <= 1
    np.testing.assert_allclose(np.diff(rows, 2), 0, atol=1e-6)
    ends = rows[:, -1] - rows[:, 0]
    assert (np.abs(ends) >= 0.5 - 1e-6).all() and 10 < (ends < 0).sum() < 40


def test_cmi_moves_student_and_generator_by_views_of_its_images(networks):
    source, (teachers, student) = _one_shot(networks, "cmi"), networks
    engine = Distiller(student, teachers, toys.method("cmi"), source)
    engine.compile(CoupledSGD(0.02))
    before = {n: np.array(p.variables[0]) for n, p in engine.state.items()}
    for element in source.dataset(0).take(2):
        engine.student_step(source.next_batches(element), 0)
    after = {name: np.array(part.variables[0]) for name, part in engine.state.items()}
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved == {"student", "student_optimizer", "generator", "ring"}
    assert engine.term_means()["generator_contrast"] > 0
    assert len(source.ring.answers) == 3  # features, too: what views are compared by
