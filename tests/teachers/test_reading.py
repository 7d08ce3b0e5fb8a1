"""Teachers tell which pixel values they expect, and how that is known."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.networks.pixel_ranges import pixel_values
from cdfkd_tf.teachers.input_adapter import InputAdapter
from cdfkd_tf.teachers.reading import LabelledImages, formula_images
from cdfkd_tf.teachers.teacher import Teacher
from tests.rows import rows
from tests.teachers.test_teacher import state_of

pytestmark = pytest.mark.faults

SHAPE = (8, 8, 3)
SPEC = plain_spec("none", SHAPE, 8)
KINDS = ("0..1", "0..255", "-1..1", "imagenet", "caffe")
# One colour per class. The nearest one is found by a linear layer.
GREYS = np.repeat([[0.1], [0.25], [0.4], [0.55], [0.7], [0.85]], 3, axis=1)
COLOURS = np.concatenate([GREYS, [[0, 0.1, 0.3], [0.3, 0.1, 0]]])


def labelled(count=128, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(COLOURS), count)
    pixels = COLOURS[labels][:, None, None] + rng.normal(0, 0.05, (count, *SHAPE))
    normalised = SPEC.normalise(np.clip(pixels, 0, 1))
    return LabelledImages(normalised.astype("float32"), labels)


def colour_teacher(values, front=lambda x: x, sure=50.0):
    """Right about `labelled` images with pixels in these values, and none else.

    `front` may stand between; the weights take back what `values` make of pixels.
    """
    known = pixel_values(values).for_channels(COLOURS.shape[1])
    kernel, bias = COLOURS.T * sure, -0.5 * (COLOURS**2).sum(1) * sure
    scale, offset = (
        np.broadcast_to(part, 3)[:: -1 if known.reverses else 1]
        for part in (known.scale, known.offset)
    )
    bias = bias - (offset / scale) @ kernel
    kernel = (kernel / scale[:, None])[:: -1 if known.reverses else 1]
    image = keras.Input(SHAPE)
    head = layers.Dense(8)
    model = keras.Model(image, head(layers.GlobalAveragePooling2D()(front(image))))
    head.set_weights([kernel, bias])
    return model


def read(model, images=None, spec=SPEC):
    teacher = Teacher(model, InputAdapter(spec, "0..1", SHAPE), output="auto")
    teacher.find_reading(images)
    return teacher


def accuracy(teacher, images):
    return np.mean(
        teacher(images.normalised).logits.numpy().argmax(-1) == images.labels
    )


@rows("values", [*KINDS, "mean=0.5;std=1"])
def test_reading_of_a_bare_network_is_measured_on_labelled_images(values):
    model, images = colour_teacher(values), labelled()
    teacher = read(model, images)
    assert teacher.reading.values == teacher.adapter.values == values
    assert not teacher.reading.guessed
    assert "measured on " in teacher.reading.evidence
    assert " right, " in teacher.reading.evidence
    assert accuracy(teacher, labelled(seed=1)) > 0.95
    assert f"{values} (measured on" in str(teacher)


@pytest.mark.slow
def test_reading_of_a_data_sets_own_normalisation_is_measured():
    spec = dataclasses.replace(spec_of("cifar10"), image_shape=SHAPE)
    text = f"mean={','.join(map(str, spec.mean))};std={','.join(map(str, spec.std))}"
    images = labelled()
    pixels = SPEC.denormalise(images.normalised)
    images = LabelledImages(spec.normalise(pixels), images.labels)
    reading = read(colour_teacher(text), images, spec).reading
    assert reading.values == "normalised"


@rows("front", [layers.Rescaling(1 / 255), lambda x: x / 127.5 - 1])
def test_reading_of_preprocessing_is_confirmed_by_the_first_images(front):
    behind = "0..1" if isinstance(front, layers.Layer) else "-1..1"
    for images in (None, labelled()):
        teacher = read(colour_teacher(behind, front), images)
        assert teacher.reading.values == "0..255" and not teacher.reading.guessed
        assert teacher.reading.evidence.startswith("read from ")
        assert accuracy(teacher, labelled(seed=1)) > 0.95
    assert "% right on 32 labelled images" in teacher.reading.evidence


def test_reading_is_what_makes_a_teacher_right_whatever_stands_in_front():
    """Trained on 0..1, although its first layer divides by 255."""
    model = colour_teacher("0..1", layers.Rescaling(1 / 255))
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 255)
    reading = read(model, labelled()).reading
    assert reading.values == "0..1" and not reading.guessed
    assert "although its own layers look like 0..255" in reading.evidence


@pytest.mark.slow
def test_reading_without_a_clear_difference_is_called_a_guess():
    images = labelled(12)  # enough to see that it is right, not with what alone
    reading = read(colour_teacher("0..1"), images).reading
    assert reading.values == "0..1" and reading.guessed
    assert reading.evidence.startswith("guessed: measured on 12 labelled images")
    assert "no clear difference" in reading.evidence


def test_reading_of_a_teacher_that_is_never_right_says_so():
    images = labelled()
    mixed = np.random.default_rng(1).permutation(images.labels)
    images = LabelledImages(images.normalised, mixed)
    reading = read(colour_teacher("-1..1"), images).reading
    assert reading.guessed
    assert "no values make it right about 128 labelled images" in reading.evidence


# Without images.


def with_memory(values, statistics_of):
    """A network whose BatchNormalization was trained on photographs in `values`."""
    keras.utils.set_random_seed(1)
    image = keras.Input(SHAPE)
    convolution = layers.Conv2D(16, 3, use_bias=False)
    norm = layers.BatchNormalization()
    maps = layers.ReLU()(norm(convolution(image)))
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(maps)))
    photos = pixel_values(values).for_channels(3).of_pixels(statistics_of)
    convolved = np.asarray(convolution(photos.astype("float32")))
    norm.moving_mean.assign(convolved.mean((0, 1, 2)))
    norm.moving_variance.assign(convolved.var((0, 1, 2)))
    return model


@rows("values", KINDS)
def test_reading_without_images_is_guessed_from_stored_statistics(values):
    photos = formula_images(64, SHAPE, seed=7)
    photos = np.clip(0.5 + 1.3 * (photos - 0.45), 0, 1)  # of more contrast, lighter
    reading = read(with_memory(values, photos)).reading
    assert reading.values == values
    assert reading.guessed and "BatchNormalization" in reading.evidence


@pytest.mark.slow
@rows("layer, values", [("conv2_block1_3_conv", "caffe"), ("conv_dw_1", "-1..1")])
def test_reading_of_a_published_network_is_guessed_by_its_layers(layer, values):
    image = keras.Input(SHAPE)
    maps = layers.Conv2D(3, 3, name=layer)(image)
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(maps)))
    reading = read(model).reading
    assert reading.values == values and reading.guessed
    assert "keras.applications" in reading.evidence


def test_reading_without_statistics_is_guessed_from_how_answers_differ():
    reading = read(colour_teacher("0..255")).reading
    assert reading.values == "0..255" and reading.guessed
    assert "do its answers differ" in reading.evidence


def test_reading_of_nothing_is_called_a_guess(tmp_path):
    model = colour_teacher("0..1")
    model.export(tmp_path / "saved", verbose=False)
    for each in (model, load_classifier(tmp_path / "saved")):
        teacher = read(each)
        assert teacher.reading.values == "0..1" and teacher.reading.guessed
        assert teacher.reading.evidence == (
            "guessed: nothing inside it tells; --teacher_input=... settles it"
        )
    default = dataclasses.replace(spec_of("cifar10"), image_shape=SHAPE)
    assert read(model, spec=default).reading.values == "normalised"


@pytest.mark.slow
def test_reading_leaves_the_model_as_it_was():
    model = colour_teacher("imagenet")
    before, weights = state_of(model), model.get_weights()
    teacher = read(model, labelled())
    teacher.release()
    assert state_of(model) == before
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_formula_images_have_the_statistics_of_photographs():
    images = formula_images(64, (32, 32, 3))
    assert images.min() >= 0 and images.max() <= 1
    assert 0.35 < images.mean() < 0.55 and 0.15 < images.std() < 0.35
    steps = np.abs(np.diff(images, axis=2)).mean()
    assert steps < 0.5 * np.abs(images - images[::-1]).mean()  # neighbours are alike
    np.testing.assert_array_equal(images, formula_images(64, (32, 32, 3)))
