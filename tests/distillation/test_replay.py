"""Generated images that are kept: the newest, with their answers, drawn evenly."""

import numpy as np
import tensorflow as tf

from tests import toys
from tests.distillation.test_bank import _source as fixed_images


def _filled(steps, **options):
    """An engine whose source has made `steps` batches; what it drew at the last."""
    engine = toys.distiller(kept=20, **options)  # two batches of eight
    for element in engine.source.dataset(0).take(steps):
        batch = engine.source.next_batches(element)
    return engine, batch


def test_ring_keeps_the_newest_images_with_the_teachers_answers():
    engine, _ = _filled(3)
    source, noise = engine.source, list(engine.source.dataset(0).take(3))
    made = [source.generated.next_batches(n).images[0].numpy() for n, _ in noise]
    ring = source.ring
    assert int(ring.written.value) == 24
    expected = np.concatenate([made[2], made[1]]).astype("float16")
    np.testing.assert_array_equal(np.array(ring.images), expected)
    answers = engine.teachers(tf.constant(expected, tf.float32))
    logits, *features = map(np.array, ring.answers)
    np.testing.assert_allclose(logits, answers.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ring.classes, logits.mean(1).argmax(-1))
    for kept, given in zip(features, answers.features, strict=True):
        np.testing.assert_allclose(kept, given, rtol=1e-5, atol=1e-5)


def test_replayed_images_come_with_their_own_answers_and_from_filled_places_alone():
    engine, batch = _filled(1)  # half of the ring is still empty
    ring = engine.source.ring
    images, kept = np.array(batch.images), np.array(ring.images)[:8]
    assert images.shape == (2, 8, *toys.SHAPE)
    same = (images[:, :, None] == kept).all(axis=(3, 4, 5))
    assert (same.sum(-1) == 1).all()
    logits = np.array(ring.answers[0])[same.argmax(-1)]
    np.testing.assert_array_equal(batch.teachers.logits, logits)


def test_replayed_images_are_mixed_with_a_bank_in_proportion_to_both():
    fixed = fixed_images(16, student_steps=300, batch_size=8)
    row = toys.method(student={"ensemble": 1.0})
    fixed.bank.features = []
    engine, batch = _filled(2, row=row, fixed=fixed, student_steps=300)
    images = engine.source.normalise(batch.images).numpy().reshape(2400, -1)
    of_bank = fixed.normalise(tf.constant(fixed.bank.images)).numpy().reshape(16, -1)
    is_fixed = (np.abs(images[:, None] - of_bank).max(-1) < 2e-3).any(-1)
    assert 0.45 < is_fixed.mean() < 0.55  # sixteen of each
    places = np.abs(images[is_fixed][:, None] - of_bank).max(-1).argmin(-1)
    logits = np.array(batch.teachers.logits).reshape(2400, 2, -1)[is_fixed]
    np.testing.assert_array_equal(logits, fixed.bank.logits[places])


def test_student_learns_from_kept_images_while_the_generator_moves():
    engine = toys.distiller(kept=16)
    before = {n: np.array(p.variables[0]) for n, p in engine.state.items()}
    data = engine.source.dataset(0)
    engine.fit(data, steps_per_epoch=2, verbose=0, shuffle=False)
    after = {name: np.array(part.variables[0]) for name, part in engine.state.items()}
    assert all((before[name] != after[name]).any() for name in before)
    assert int(engine.optimizer.iterations.value) == 4
