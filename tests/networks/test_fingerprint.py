"""A network's fingerprint changes with the network, and with nothing else."""

import keras
import numpy as np
from keras import layers

from cdfkd_tf.networks.fingerprint import fingerprint
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.teachers.teacher import Teacher
from tests import toys
from tests.rows import rows


def in_front_of_half(operation):
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(operation(image))))
    model.set_weights([np.full(w.shape, 0.5) for w in model.get_weights()])
    return model


@rows(
    "build",
    [lambda: toys.classifier(seed=1), lambda: in_front_of_half(lambda x: x / 2.0)],
)
def test_fingerprint_of_a_model_does_not_depend_on_names_or_use(build):
    model = build()
    first = fingerprint(model)
    assert first.startswith("sha256:") and len(first) == 71
    assert fingerprint(build()) == first  # its layers are called dense_1 and so on
    teacher = Teacher(model)
    assert fingerprint(model) == first
    teacher.release()
    assert fingerprint(model) == first


def test_fingerprint_of_a_model_changes_with_weights_settings_and_connections():
    model = toys.classifier(seed=1)
    models = [
        model,
        toys.classifier(seed=2),
        toys.classifier(seed=1, norm=lambda: layers.BatchNormalization(epsilon=0.1)),
        in_front_of_half(lambda x: x / 2.0),
        in_front_of_half(lambda x: x / 255.0),
        in_front_of_half(lambda x: 2.0 / x),
    ]
    found = [fingerprint(each) for each in models]
    kernel = model.layers[1].kernel
    kernel.assign(kernel.numpy()[::-1])
    assert len({*found, fingerprint(model)}) == 7
    subclassed = toys.Subclassed()
    subclassed(np.zeros((1, 8, 8, 1)))
    before = fingerprint(subclassed)
    subclassed.head.bias.assign_add([0, 0, 0, 1e-3])
    assert fingerprint(subclassed) != before


@rows("name", ["model.keras", "model.h5", "saved"])
def test_fingerprint_of_a_file_is_that_of_its_content(tmp_path, name):
    def save(model, folder):
        folder.mkdir()
        if name == "saved":
            model.export(folder / name, verbose=False)
        else:
            model.save(folder / name)
        return folder / name

    model = toys.classifier(seed=1)
    path = save(model, tmp_path / "first")
    before = fingerprint(path)
    if name == "model.keras":
        assert fingerprint(str(save(model, tmp_path / "again"))) == before
    loaded = load_classifier(path)
    assert fingerprint(path) == before
    again = load_classifier(path)
    assert fingerprint(again) == fingerprint(loaded)
    model.layers[1].bias.assign_add([1e-3] * toys.WIDTH)
    assert fingerprint(save(model, tmp_path / "changed")) != before
