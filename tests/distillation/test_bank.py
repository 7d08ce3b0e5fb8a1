"""The bank: answers asked once, kept, drawn evenly over classes."""

import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation import bank
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests import toys

SPEC = plain_spec("none", toys.SHAPE, toys.CLASSES)


@pytest.fixture(scope="module")
def teachers():
    return TeacherEnsemble([toys.classifier(seed=seed) for seed in (1, 2)])


def _images(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *toys.SHAPE), dtype="uint8")


def test_ask_keeps_what_teachers_answer_to_normalised_images(teachers, tmp_path):
    images = _images(150)  # more than are asked at once
    found = bank.ask(teachers, images, SPEC, tmp_path, features=True)
    expected = teachers(tf.constant(images / 255 * 2 - 1, tf.float32))
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    for kept, features in zip(found.features, expected.features, strict=True):
        np.testing.assert_allclose(kept, features, rtol=1e-5, atol=1e-5)


def test_ask_goes_on_where_it_stopped_unless_teachers_changed(teachers, tmp_path):
    images, asked = _images(2600), []

    class Counting:
        def answers(self, normalised, needs):
            asked.append(len(normalised))
            if sum(asked) > 2400 and not counting.patient:
                raise KeyboardInterrupt
            return teachers.answers(normalised)

    counting = Counting()
    counting.patient = False
    with pytest.raises(KeyboardInterrupt):
        bank.ask(counting, images, SPEC, tmp_path)
    counting.patient, asked[:] = True, []
    found = bank.ask(counting, images, SPEC, tmp_path, note=lambda text: None)
    assert sum(asked) < 800  # the first ones, to compare, and what was missing
    np.testing.assert_allclose(
        found.logits[[0, 2599]],
        teachers.answers(images[[0, 2599]].astype("float32") / 255 * 2 - 1).logits,
        rtol=1e-4,
        atol=1e-4,
    )
    other = TeacherEnsemble([toys.classifier(seed=seed) for seed in (1, 3)])
    again = bank.ask(other, images, SPEC, tmp_path)
    expected = other.answers(images[:4].astype("float32") / 255 * 2 - 1).logits
    np.testing.assert_allclose(again.logits[:4], expected, rtol=1e-4, atol=1e-4)


def test_drawing_weights_are_even_over_classes_and_capped():
    classes = np.repeat([0, 1, 3], [80, 20, 1])
    weights = bank.drawing_weights(classes, 5).numpy()
    assert weights.sum() == pytest.approx(1)
    assert weights[:80].sum() == pytest.approx(weights[80:100].sum())
    # Evenly it would be 80 times as likely as one of the first class.
    assert weights[100] / weights[0] == pytest.approx(80 * 16 * 3 / 101)
    with_gaps = bank.drawing_weights(np.r_[-1, classes, -1], 5).numpy()
    np.testing.assert_allclose(with_gaps, [0, *weights, 0])


def _source(count=60, **changes):
    images = _images(count)
    logits = np.random.default_rng(1).normal(size=(count, 2, toys.CLASSES))
    features = [np.arange(count * 3, dtype="float32").reshape(count, 3)]
    kept = bank.Bank(images, logits.astype("float32"), features)
    options = {"student_steps": 3, "batch_size": 4, "seed": 5, "held_out": images[:9]}
    classes = kept.logits.mean(axis=1).argmax(axis=-1)
    return bank.BankedImages(kept, classes, SPEC, **(options | changes))


def test_banked_images_come_with_their_own_answers():
    source = _source()
    element = next(iter(source.dataset(0)))
    batch = source.next_batches(element)
    images = source.normalise(batch.images).numpy()
    assert images.shape == (3, 4, *toys.SHAPE)
    places = (batch.teachers.features[0][..., 0].numpy() / 3).astype(int)
    np.testing.assert_array_equal(
        np.rint((images + 1) * 127.5), source.bank.images[places]
    )
    np.testing.assert_array_equal(batch.teachers.logits, source.bank.logits[places])


def test_banked_images_are_a_function_of_seed_and_step():
    first, later = (iter(_source().dataset(step)) for step in (0, 2))
    next(first), next(first)
    for one, other in zip(next(first), next(later), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (next(iter(_source(seed=6).dataset(0)))[1] != next(later)[1]).numpy().any()


def test_hosts_with_some_parts_each_draw_together_what_one_with_all_draws():
    sizes, images = bank.sizes_of_parts(67), _images(67)
    logits = np.random.default_rng(1).normal(size=(67, 2, toys.CLASSES))
    ends = np.cumsum([0, *sizes])

    def drawn(first, last):
        own = slice(ends[first], ends[last])
        kept = bank.Bank(
            images[own],
            logits[own],
            [],
            part_sizes=sizes,
            own_parts=range(first, last),
        )
        classes = kept.logits.mean(axis=1).argmax(axis=-1)
        options = {"student_steps": 50, "batch_size": 6, "seed": 5, "held_out": images}
        source = bank.BankedImages(kept, classes, SPEC, **options)
        assert len(source.bank) == 67
        return next(iter(source.dataset(3)))

    whole, one, other = drawn(0, 8), drawn(0, 4), drawn(4, 8)
    for all_rows, first, last in zip(whole, one, other, strict=True):
        np.testing.assert_array_equal(all_rows[:3], first[:3])
        np.testing.assert_array_equal(all_rows[3:], last[3:])
    seen = {tuple(row) for row in whole[1].numpy().reshape(300, -1)}
    assert len(seen) > 60  # of 67: no part is left out


def test_parts_go_to_hosts_where_they_can_be_shared():
    sizes = bank.sizes_of_parts(67)
    assert (sum(sizes), len(sizes), max(sizes) - min(sizes)) == (67, 8, 1)
    assert bank.sizes_of_parts(5) == (5,)
    alone = tf.distribute.get_strategy()
    assert bank.parts_of_this_process(8, alone) == range(8)


def test_banked_draws_are_even_over_the_classes_of_the_mean():
    source = _source(count=400, batch_size=400, student_steps=10)
    logits = next(iter(source.dataset(0)))[1].numpy()
    classes = logits.reshape(-1, 2, toys.CLASSES).mean(axis=1).argmax(axis=-1)
    shares = np.bincount(classes, minlength=toys.CLASSES) / len(classes)
    np.testing.assert_allclose(shares, 1 / toys.CLASSES, atol=0.03)


def test_statistics_gaps_rank_images_like_those_of_training_first():
    """A BatchNormalization that saw bright images prefers bright images."""
    import keras

    image = keras.Input(toys.SHAPE)
    norm = keras.layers.BatchNormalization()
    hidden = keras.layers.Flatten()(norm(image))
    model = keras.Model(image, keras.layers.Dense(2)(hidden))
    norm.moving_mean.assign([0.6])
    norm.moving_variance.assign([0.04])
    rng = np.random.default_rng(0)
    like = np.clip(rng.normal(0.8, 0.1, (64, *toys.SHAPE)), 0, 1)  # 0.6 in [-1, 1]
    samples = {"like": (like * 255).astype("uint8"), "unlike": _images(64)}
    gaps = bank.statistics_gaps(TeacherEnsemble([model]), samples, SPEC, 5)
    assert gaps["like"] < 0.2 < gaps["unlike"]
    pixels = samples["unlike"] / 127.5 - 1
    shift, ratio = abs(pixels.mean() - 0.6) / 0.2, abs(np.log(pixels.std() / 0.2))
    assert gaps["unlike"] == pytest.approx(shift + ratio, rel=0.02)
    shares = bank.shares_of({"like": 0.5, "unlike": 0.5}, gaps)
    assert shares["like"] > 0.8 and sum(shares.values()) == pytest.approx(1)
    shares = bank.shares_of({"all": 0.9, "few": 0.3}, {})
    assert shares["all"] == pytest.approx(81 / 82, abs=1e-5)  # 3^4 to 1


def test_coverages_are_geometric_means_of_what_teachers_see(teachers):
    samples = {"plain": np.zeros((9, *toys.SHAPE), "uint8"), "noise": _images(70)}

    def answer(images):
        return [teachers.answers(images.astype("float32") / 255 * 2 - 1).logits]

    found = bank.coverages(teachers, samples, answer, 32)
    for kind, images in samples.items():
        odds = np.exp(answer(images)[0].mean(axis=1))
        seen = (odds / odds.sum(-1, keepdims=True)).mean(axis=0)
        expected = np.prod(seen * toys.CLASSES) ** (1 / toys.CLASSES)
        assert found[kind] == pytest.approx(expected, rel=1e-3)


def test_answers_by_batch_statistics_are_those_of_a_forward_pass_in_training():
    import keras

    image = keras.Input(toys.SHAPE)
    norm = keras.layers.BatchNormalization(epsilon=0.01)(image)
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(norm))
    model, images = keras.Model(image, logits), _images(6)
    expected = model(images / 127.5 - 1, training=True).numpy()  # moves what is stored
    model.layers[1].moving_mean.assign([0.7])
    teachers, needs = TeacherEnsemble([model]), frozenset({"batch_statistics"})
    found = teachers.answers((images / 127.5 - 1).astype("float32"), needs).logits
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-4)
