"""Students on anybody's trunk."""

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.export.inference_graph import inference_graph
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.networks.backbones import find_backbone
from cdfkd_tf.networks.loading import load_network
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.runtime.keras_internals import leaf_layers
from tests.rows import rows

SPEC = plain_spec("none", (32, 32, 3), 5)
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


def small_network():
    image = keras.Input((32, 32, 3))
    tensor = layers.Conv2D(8, 3, 2, padding="same", name="stem")(image)
    inner = layers.Conv2D(24, 1, name="wide")(tensor)
    inner = layers.Conv2D(8, 3, padding="same", name="inner")(inner)
    tensor = layers.Add(name="block1")([tensor, inner])
    tensor = layers.Conv2D(32, 1, name="expand")(tensor)
    tensor = layers.DepthwiseConv2D(3, 2, padding="same", name="down")(tensor)
    tensor = layers.BatchNormalization(momentum=0.999, name="bn")(
        layers.Conv2D(12, 1, name="block2")(tensor)
    )
    pooled = layers.GlobalAveragePooling2D()(tensor)
    return keras.Model(image, layers.Dense(5, name="head")(pooled))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "network.keras"
    small_network().save(path)
    return str(path)


def maps_of(name, **kwargs):
    return find_backbone(name, SPEC, **kwargs)(keras.Input((32, 32, 3)), 1.0).maps


@rows(
    "side, levels",
    [(8, [(8, 64)]), (28, [(14, 16), (7, 64)]), (64, [(32, 16), (16, 16), (8, 64)])],
)
def test_compact_halves_first_and_ends_at_about_seven_pixels(side, levels):
    maps = find_backbone("compact", SPEC)(keras.Input((side, side, 1)), 1.0).maps
    assert [level.shape[2:] for level in maps] == levels


def test_taps_are_block_ends_at_each_resolution(file):
    assert [level.shape[1:] for level in maps_of(file)] == [(16, 16, 8), (8, 8, 12)]


def test_the_tapped_map_is_the_merge_with_the_files_weights(file):
    trunk = keras.models.load_model(file)
    image = keras.Input((32, 32, 3))
    maps = keras.Model(image, find_backbone(file, SPEC)(image, 1.0).maps)
    expected = keras.Model(trunk.input, trunk.get_layer("block1").output)(IMAGES)
    np.testing.assert_allclose(maps(IMAGES)[0], expected, atol=1e-6)


def test_taps_by_name(file):
    maps = maps_of(file, feature_layers=("wide", "bn"))
    assert [level.shape[-1] for level in maps] == [24, 12]


@rows("headers", [1, 3])
def test_a_student_on_a_file_saves_loads_and_answers(file, headers, tmp_path):
    sharing = "single" if headers == 1 else "multi_level"
    backbone = find_backbone(file, SPEC)
    student = build_student(backbone, (32, 32, 3), 5, headers, sharing=sharing)
    said = student(IMAGES)
    assert said["logits"].shape == (2, headers, 5)
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")(IMAGES)
    np.testing.assert_allclose(again["logits"], said["logits"], atol=1e-6)
    momenta = {
        layer.momentum
        for layer in student._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    }
    assert max(momenta) == 0.9


@pytest.mark.slow
def test_applications_are_tapped_at_each_resolution():
    for name, channels in [
        ("MobileNetV2", [16, 24, 32, 96, 160]),
        ("MobileNetV3Small", [16, 16, 24, 48, 96]),
        ("EfficientNetB0", [16, 24, 40, 112, 320]),
    ]:
        maps = maps_of(name)
        assert [level.shape[-1] for level in maps] == channels
        assert [level.shape[1] for level in maps] == [16, 8, 4, 2, 1]


@pytest.mark.slow
def test_unpadded_networks_are_tapped_at_odd_sizes_too():
    spec = plain_spec("none", (33, 45, 3), 5)
    backbone = find_backbone("MobileNet", spec)
    maps = backbone(keras.Input((33, 45, 3)), 0.25).maps
    assert [m.shape[1:3] for m in maps] == [(17, 23), (8, 11), (4, 5), (2, 2), (1, 1)]
    student = build_student(backbone, (33, 45, 3), 5, 2, width=0.25)
    answers = student(np.ones((2, 33, 45, 3), "float32"))
    assert answers["logits"].shape == (2, 2, 5)


def test_an_application_that_scales_its_input_gets_bytes():
    image = keras.Input((32, 32, 3))
    maps = find_backbone("MobileNetV3Small", SPEC)(image, 1.0).maps
    first = keras.Model(image, maps[0]).layers[1]
    pixels = (IMAGES + 1) / 2 * 255
    np.testing.assert_allclose(first(IMAGES), pixels, atol=1e-3)


@pytest.mark.slow
def test_wrong_students_are_refused():
    for name, kwargs, message in [
        ("resnet99", {}, "Unknown network 'resnet99'. Known: .*resnet18.*MobileNetV2"),
        ("absent.keras", {}, "no student file absent"),
        ("wrn10_1", {"feature_layers": ("x",)}, "brings its own"),
        ("MobileNetV2", {"feature_layers": ("absent",)}, "no layer 'absent'; its last"),
        ("Xception", {}, "cannot take images of .*32, 32, 3"),
    ]:
        with pytest.raises(RequestError, match=message):
            maps_of(name, **kwargs)


@pytest.mark.slow
def test_inference_graph_of_a_student_on_a_file_is_the_same_function(file):
    student = build_student(find_backbone(file, SPEC), (32, 32, 3), 5, 2)
    student(IMAGES, training=True)  # statistics that are not 0 and 1
    aggregator = build_aggregator("mean", student)
    predictor = build_predictor(student, aggregator, SPEC.mean, SPEC.std)
    pixels = np.clip(IMAGES / 4 + 0.5, 0, 1)
    graph = inference_graph(predictor)(pixels)
    np.testing.assert_allclose(graph, predictor(pixels), atol=1e-5)


@pytest.mark.slow
def test_width_that_cannot_be_had_is_refused(file):
    for name in (file, "EfficientNetB0"):
        with pytest.raises(RequestError, match=r"--student_width=0\.5 cannot scale"):
            find_backbone(name, SPEC)(keras.Input((32, 32, 3)), 0.5)


@pytest.mark.slow
def test_split_needs_a_last_block(file):
    backbone = find_backbone(file, SPEC)
    with pytest.raises(RequestError, match="Use 'multi_level'"):
        build_student(backbone, (32, 32, 3), 5, 2, sharing="split")


OPEN = plain_spec("none", (20, 12, 3), 5)


def odd_network():
    """Open size, a model in a model, a strided 1x1 convolution, operations, statistics.

    Its outer layers are named as its inner ones.
    """
    inner = keras.Input((None, None, 4))
    tensor = layers.Conv2D(6, 1, 2, name="conv")(inner)
    inner = keras.Model(inner, layers.BatchNormalization(name="norm")(tensor))
    norm = layers.Normalization(name="norm")
    norm.adapt(np.random.default_rng(0).uniform(0, 1, (9, 4, 4, 3)))
    image = keras.Input((None, None, 3))
    tensor = layers.Conv2D(4, 3, 2, padding="same", name="conv")(norm(image))
    tensor = tensor + layers.Conv2D(4, 1, name="branch")(tensor)
    tensor = inner(tensor, training=False)
    pooled = layers.GlobalAveragePooling2D()(tensor)
    return keras.Model(image, layers.Dense(5)(pooled))


@pytest.mark.slow
def test_student_files_of_open_size_and_models_inside_are_built_at_the_images(tmp_path):
    network = odd_network()
    rng = np.random.default_rng(1)
    for layer in (*network.layers[2:], *network.layers[4].layers):
        layer.set_weights([rng.uniform(0.5, 1, w.shape) for w in layer.get_weights()])
    network.save(tmp_path / "odd.h5")
    images = rng.normal(size=(2, 20, 12, 3)).astype("float32")
    for _ in range(2):
        image = keras.Input((20, 12, 3))
        maps = find_backbone(str(tmp_path / "odd.h5"), OPEN)(image, 1.0).maps
        assert [level.shape[1:] for level in maps] == [(10, 6, 4), (5, 3, 6)]
        trunk = keras.Model(image, maps)
        inner = keras.Model(network.input, network.layers[-2].input)
        expected = inner(images / 2 + 0.5)  # its statistics are those of [0, 1]
        np.testing.assert_allclose(trunk(images)[1], expected, rtol=1e-5, atol=1e-4)
    strides = [x.strides for x in leaf_layers(trunk) if isinstance(x, layers.Conv2D)]
    assert strides == [(2, 2), (1, 1), (1, 1)]
    student = build_student(
        find_backbone(str(tmp_path / "odd.h5"), OPEN), (20, 12, 3), 5, 2
    )
    student.save(tmp_path / "student.keras")
    again = load_network(tmp_path / "student.keras", "student")(images)
    np.testing.assert_allclose(again["logits"], student(images)["logits"], atol=1e-6)
    names = {variable.path for variable in student.trainable_variables}
    assert any("norm_2/gamma" in name for name in names)
    assert {v.dtype for v in student.trainable_variables} == {"float32"}


@pytest.mark.slow
def test_maps_are_those_behind_the_last_gap(tmp_path):
    image = keras.Input((32, 32, 3))
    tensor = layers.Conv2D(4, 3, 2, padding="same", name="fine")(image)
    tensor = layers.MaxPooling2D(4, name="gap")(tensor)
    tensor = layers.Conv2D(5, 3, 2, padding="same", name="last")(tensor)
    keras.Model(image, tensor).save(tmp_path / "a.keras")
    file = str(tmp_path / "a.keras")
    assert [level.shape[1:] for level in maps_of(file)] == [(4, 4, 4), (2, 2, 5)]
    with pytest.raises(RequestError, match=r"halve from one .* are 16x16, 4x4"):
        maps_of(file, feature_layers=("fine", "gap"))


def test_student_files_that_are_none_are_told_why(tmp_path):
    image = keras.Input((9,))
    keras.Model(image, layers.Dense(5)(image)).save(tmp_path / "rows.keras")
    image = keras.Input((None, None, 3))
    small = layers.Conv2D(4, 40, name="c")(image)
    keras.Model(image, small).save(tmp_path / "small.keras")
    fixed = keras.Input((16, 32, 3))
    keras.Model(fixed, layers.Conv2D(4, 3)(fixed)).save(tmp_path / "fixed.keras")
    (tmp_path / "page.keras").write_text("<html>")
    for name, words in [
        ("rows", "must take one batch of images"),
        ("small", r"cannot be built for images of \(32, 32, 3\)"),
        ("fixed", r"takes images \(16, 32, 3\); the data set's are \(32, 32, 3\)"),
        ("page", "Cannot read student .* a web page"),
    ]:
        with pytest.raises(RequestError, match=words):
            maps_of(str(tmp_path / f"{name}.keras"))
