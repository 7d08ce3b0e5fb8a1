"""Students answer as a stack of headers, at any size and width."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.layers import conv, scale_width
from cdfkd_tf.networks.students import build_student, feature_maps_model
from cdfkd_tf.runtime.keras_internals import leaf_layers
from tests.rows import rows

FAMILIES = ("lenet", "resnet18", "wrn10_1")  # the others are deeper or wider


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow)
        for name in BACKBONES
    ],
)
@rows("sharing", ["single", "split", "multi_level"])
def test_every_backbone_carries_every_kind_of_header(backbone, sharing):
    headers = 1 if sharing == "single" else 2
    student = build_student(
        backbone, (9, 12, 2), 5, headers, sharing=sharing, width=0.25
    )
    answers = student(np.ones((3, 9, 12, 2), "float32"), training=True)
    assert answers["logits"].shape == (3, headers, 5)
    assert answers["features"].shape[:2] == (3, headers)


def test_headers_read_all_levels_of_one_trunk():
    student = build_student("wrn10_1", (16, 16, 1), 10, 3, width=0.5)
    names = {layer.name for layer in student.layers}
    for header in range(3):
        for level in range(1, 4):
            assert f"header{header}_encoder{level}_depthwise1" in names
    assert sum(name.startswith("stem_conv") for name in names) == 1


def test_split_copies_only_the_last_block():
    student = build_student("wrn10_1", (16, 16, 1), 10, 2, sharing="split")
    names = {layer.name for layer in student.layers}
    assert "header1_stage3_block0_conv1" in names
    assert (
        "stage3_block0_conv1" not in names
        and "header0_stage2_block0_conv1" not in names
    )


@pytest.mark.slow
def test_half_width_student_of_the_quickstart_is_a_tenth_of_its_teachers():
    student = build_student("wrn10_1", (16, 16, 1), 10, 3, width=0.5)
    teacher = build_classifier("wrn16_1", (16, 16, 1), 10)
    sizes = [
        sum(np.prod(weight.shape) for weight in model.trainable_weights)
        for model in (student, teacher)
    ]
    assert sizes[0] == 52_182 and 8 * sizes[0] <= 3 * sizes[1]


@pytest.mark.slow
def test_widths_are_multiples_of_8():
    for channels, width, expected in [
        (64, 1, 64),
        (10, 1, 10),
        (16, 0.5, 8),
        (64, 0.3, 16),
        (16, 0.1, 8),
        (64, 2, 128),
    ]:
        assert scale_width(channels, width) == expected


@pytest.mark.slow
def test_large_images_get_the_large_stem():
    def stem(side):
        model = build_student(
            "resnet18", (side, side, 3), 5, 1, sharing="single", width=0.125
        )
        return model.get_layer("stem_conv").kernel_size

    assert stem(63) == (3, 3) and stem(64) == (7, 7)


def test_students_load_with_keras_alone(tmp_path):
    student = build_student("wrn10_1", (8, 8, 1), 4, 2, width=0.5)
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
    for key, answer in student(images).items():
        np.testing.assert_array_equal(answer, loaded(images)[key])
    modules = {type(layer).__module__.partition(".")[0] for layer in student.layers}
    assert modules == {"keras"}


def test_wrong_requests_are_explained():
    with pytest.raises(RequestError, match=r"Unknown network 'vgg'\. Known: compact"):
        build_student("vgg", (8, 8, 1), 4, 2)
    with pytest.raises(RequestError, match="Unknown sharing 'none'"):
        build_student("wrn10_1", (8, 8, 1), 4, 2, sharing="none")
    with pytest.raises(RequestError, match="'single' has one header; got 2"):
        build_student("wrn10_1", (8, 8, 1), 4, 2, sharing="single")


@rows("sharing, levels", [("multi_level", 3), ("split", 2)])
def test_feature_maps_are_the_students_own_finest_first(sharing, levels, tmp_path):
    student = build_student("wrn10_1", (8, 12, 1), 4, 2, sharing=sharing, width=0.5)
    model = feature_maps_model(student)
    images = np.random.default_rng(0).normal(size=(3, 8, 12, 1)).astype("float32")
    outputs = model(images, training=True)
    shapes = [(3, 8, 12, 8), (3, 4, 6, 16), (3, 2, 3, 32)][:levels]
    assert [tuple(level.shape) for level in outputs["maps"]] == shapes
    first = keras.Model(student.input, student.get_layer("stage1_block0_add").output)
    outputs = model(images)
    np.testing.assert_array_equal(outputs["maps"][0], first(images))
    np.testing.assert_array_equal(outputs["logits"], student(images)["logits"])
    assert model.count_params() == student.count_params()
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert set(loaded.output) == {"logits", "features"}


@pytest.mark.slow
@rows("backbone", BACKBONES)
def test_no_backbone_strides_a_pointwise_convolution(backbone):
    """Its filter gradient ends the process on CPUs, from 56 pixels on."""
    for side, width in ((16, 1), (40, 0.25), (128, 0.25)):
        student = build_student(backbone, (side, side, 3), 4, 1, width=width)
        for layer in leaf_layers(student):
            if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1):
                assert layer.strides == (1, 1), layer.name


@pytest.mark.slow
@rows("side", [56, 64])
def test_narrow_students_of_large_images_train(side):
    """In a process of its own, which such a gradient would end."""
    program = f"""
import keras, numpy as np
from cdfkd_tf.networks.students import build_student
student = build_student("wrn10_1", ({side}, {side}, 3), 4, 2, width=0.5)
kernel = student.get_layer("stage2_block0_shortcut").kernel
before = np.array(kernel)
model = keras.Model(student.input, student.output["logits"])
model.compile("sgd", "mse")
model.fit(np.ones((4, {side}, {side}, 3)), np.ones((4, 2, 4)), verbose=0)
after = np.array(kernel)
assert np.isfinite(after).all() and not np.array_equal(before, after)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_strided_pointwise_convolution_reads_every_second_pixel():
    image = keras.Input((5, 6, 2))
    model = keras.Model(image, conv(image, 3, kernel=1, stride=2, name="c"))
    images = np.random.default_rng(0).normal(size=(2, 5, 6, 2)).astype("float32")
    (kernel,) = model.get_weights()
    expected = images[:, ::2, ::2] @ kernel[0, 0]
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-6)
