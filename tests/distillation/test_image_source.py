"""Where images come from: batches, what a checkpoint holds, what can be looked at."""

import numpy as np
import pytest

from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.distillation.image_source import DatasetImages, ImageSource, Sampler
from tests import toys
from tests.rows import rows
from tests.toys import moved, values_of


def elements(source, first_step, count):
    return list(source.dataset(first_step).take(count).as_numpy_iterator())


def test_generated_images_go_on_with_the_noise_that_would_have_come():
    source = toys.distiller().source
    ours, whole = elements(source, 2, 2), elements(source, 0, 4)
    np.testing.assert_array_equal(ours, whole[2:])
    assert ours[0].shape == (8, 3, toys.LATENT)


def test_generated_images_of_a_step_normalise_by_their_own_batch():
    source = toys.distiller().source
    noise = toys.latents()
    noise[:, 1] += 5  # of another batch: without effect on the first one's images
    ours = source.next_batches(noise).images
    assert ours.shape == (2, 8, *toys.SHAPE)
    alone = source.generator(noise[:, 0], training=True)
    np.testing.assert_allclose(ours[0], alone, rtol=1e-5, atol=1e-6)


def test_generated_images_keep_generator_and_optimizer_in_the_checkpoint():
    source = toys.distiller().source
    assert source.state == {
        "generator": source.generator,
        "generator_optimizer": source.optimizer,
    }


def test_every_other_image_is_of_the_running_mean_which_follows_the_generator():
    engine = toys.distiller(mean_decay=0.75, kept=0)
    source, noise = engine.source, toys.latents()
    before = [w.numpy() for w in source.mean.trainable_variables]
    engine.source_step(noise)
    for mean, old, new in zip(
        source.mean.trainable_variables, before, source.generator.trainable_variables
    ):
        np.testing.assert_allclose(mean, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7)
        assert np.abs(new - old).max() > 1e-4
    images = np.array(source.next_batches(noise).images[1])
    for start, network in enumerate((source.generator, source.mean)):
        expected = network(noise[start::2, 1], training=True)
        np.testing.assert_allclose(images[start::2], expected, rtol=1e-5, atol=1e-6)


@rows("where", ["agree", "disagree"])
def test_generator_counts_the_images_where_student_and_teachers_agree_or_not(where):
    row = toys.method("cdfkd", generator={"ensemble": -1.0}, adversarial_on=where)
    engine, noise = toys.distiller(row), toys.latents()
    images = engine.source.generator(noise[:, -1], training=True)
    student = np.array(engine.student(images, training=True)["logits"]).mean(1)
    teachers = np.array(engine.teachers(images).logits).mean(1)
    q, p = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (student, teachers))
    counted = (student.argmax(-1) == teachers.argmax(-1)) == (where == "agree")
    expected = ((p * np.log(p / q)).sum(-1) * counted).mean()
    engine.source_step(noise)
    ours = engine.term_means()["generator_ensemble"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_observe_gives_the_same_images_of_other_noise_and_moves_nothing():
    source = toys.distiller().source
    before = values_of(source.generator)
    first, second = list(source.observe()), list(source.observe())
    np.testing.assert_array_equal(first, second)
    assert {len(batch) for batch in first} == {8} and len(first) == 32
    assert moved(before, values_of(source.generator)) == set()


@pytest.mark.slow
def test_sampler_takes_any_number_of_images_in_batches():
    generator = toys.generator()
    before = values_of(generator)
    noise = (
        np.random.default_rng(0).standard_normal((20, toys.LATENT)).astype("float32")
    )
    ours = Sampler(generator, 8)(noise)
    assert moved(before, values_of(generator)) == set()
    for part in (slice(0, 8), slice(16, 20)):  # statistics are those of a batch
        expected = generator(noise[part], training=True)
        np.testing.assert_allclose(ours[part], expected, rtol=1e-5, atol=1e-6)


def test_dataset_images_are_batches_of_real_ones(data_dir):
    source = DatasetImages(RealImages(spec_of("digits"), str(data_dir)), 8, seed=0)
    (first, later), (again,) = elements(source, 0, 2), elements(source, 1, 1)
    np.testing.assert_array_equal(later[0], again[0])
    batch = source.next_batches(first)
    assert batch.images.shape == (1, *first[0].shape) and batch.teachers is None
    assert source.student_steps == 1 and source.state == {}
    assert list(source.observe()) == []


def test_a_source_must_have_data_and_batches():
    with pytest.raises(TypeError, match=r"dataset.*next_batches"):
        ImageSource()
