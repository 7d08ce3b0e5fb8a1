"""Our networks compute what the published implementation computed."""

import numpy as np
import pytest

from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.generators import build_generator
from cdfkd_tf.networks.pytorch_weights import load_pytorch_tensors
from cdfkd_tf.networks.students import build_student
from tests.parity.filling import RECORDED, draw, fill, load
from tests.rows import rows

CIFAR = ((32, 32, 3), 100)
CLASSIFIERS = ["wrn16_1", "wrn16_2", "wrn40_2", "resnet18", "resnet34"]
STUDENTS = ["mh_wrn16_1", "mh_wrn16_2", "mh_wrn40_2", "mh_resnet18", "split_resnet18"]
GENERATORS = {
    "generator_32": ("dafl", (32, 32, 3), True),
    "generator_64_bn": ("dcgan", (64, 64, 3), True),
    "generator_128_tanh": ("dcgan", (128, 128, 3), False),
}


def network(name):
    if name in GENERATORS:
        kind, image_shape, standardised = GENERATORS[name]
        model = build_generator(kind, image_shape, 256, standardised=standardised)
    elif name in STUDENTS:
        prefix, _, backbone = name.partition("_")
        sharing = {"mh": "multi_level", "split": "split"}[prefix]
        model = build_student(backbone, *CIFAR, num_headers=3, sharing=sharing)
    else:
        model = build_student(name, *CIFAR, num_headers=1, sharing="single")
    load_pytorch_tensors(model, fill(name, RECORDED[name]["tensors"]))
    return model


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def assert_close(ours, theirs):
    """Within 2e-4 of the largest recorded value: what float32 supports."""
    theirs = theirs.astype("float32")
    limit = 2e-4 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


# What is deeper or wider than these is of their families.
QUICK = ("wrn16_1", "resnet18", "mh_wrn16_1", "mh_resnet18", "split_resnet18")


def quick_or_slow(names):
    return [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names
    ]


@pytest.mark.parametrize("name", quick_or_slow(CLASSIFIERS + STUDENTS))
def test_network_equals_the_recorded_one(name):
    model, recorded = network(name), load(f"forward_{name}")
    assert parameters(model) == RECORDED[name]["parameters"]
    images = draw(name, "x", RECORDED[name]["input"])
    for mode, training in (("eval", False), ("train", True)):
        answers = model(images, training=training)
        for key in ("logits", "features"):
            theirs = recorded.get(f"{key}_{mode}")
            if theirs is None:
                continue
            ours = np.moveaxis(np.asarray(answers[key]), 1, 0)  # header axis first
            assert_close(ours.reshape(theirs.shape), theirs)


@pytest.mark.parametrize("name", quick_or_slow(CLASSIFIERS))
def test_classifier_is_the_single_header_student(name):
    classifier = build_classifier(name, *CIFAR)
    load_pytorch_tensors(classifier, fill(name, RECORDED[name]["tensors"]))
    images = draw(name, "x", RECORDED[name]["input"])
    assert_close(
        classifier(images, training=False), load(f"forward_{name}")["logits_eval"]
    )


@rows("name", sorted(GENERATORS))
def test_generator_equals_the_recorded_one(name):
    model = network(name)
    assert parameters(model) == RECORDED[name]["parameters"]
    images = model(draw(name, "z", (4, 256)), training=True)
    recorded = load(f"forward_{name}")["images_train"]
    # float16 rounds the recorded values by up to 4.9e-4 of themselves.
    tolerance = 7e-4 if recorded.dtype == np.float16 else 2e-4
    np.testing.assert_allclose(
        images, recorded, rtol=0, atol=tolerance * np.abs(recorded).max()
    )


def test_generator_for_224_pixels_has_the_recorded_size():
    model = build_generator("dcgan", (224, 224, 3), 256, standardised=True)
    assert parameters(model) == RECORDED["generator_224_bn"]["parameters"]
