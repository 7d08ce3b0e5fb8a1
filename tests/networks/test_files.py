"""Files are read by what they hold, without running code from them, or refused by name.

Files of Keras 2 are written here as it wrote them: descriptions by hand, weights of a
network of today, which tells what the answers must be.
"""

import json
import os
import pathlib
import pickle
import shutil
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.networks import loading
from cdfkd_tf.networks.loading import check_finite, load_classifier, load_network
from tests import toys
from tests.rows import rows

pytestmark = pytest.mark.faults

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3)).astype("float32")


def filled(model, seed=0):
    """With weights as if trained."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
    return model


def answers_equal(loaded, model):
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)


# Files of Keras 2.


def plain(name, kind, **config):
    return {"class_name": kind, "config": {"name": name, "trainable": True, **config}}


def read(entry, *inputs):
    """A layer of a functional model, and which it reads."""
    return {**entry, "name": entry["config"]["name"], "inbound_nodes": [list(inputs)]}


def operation(name, function, *inputs):
    return read(plain(name, "TFOpLambda", dtype="float32", function=function), *inputs)


def image(shape=(None, 8, 8, 3), name="input_1"):
    entry = plain(name, "InputLayer", batch_input_shape=shape, sparse=False)
    return {**entry, "name": name, "inbound_nodes": []}


def functional(name, parts, first, last, node=0):
    ends = {"input_layers": [[first, 0, 0]], "output_layers": [[last, node, 0]]}
    return plain(name, "Functional", layers=parts, **ends)


CONV = plain(
    *("Conv/conv", "Conv2D"),
    **{"filters": 4, "kernel_size": [3, 3], "padding": "same", "groups": 1},
    **{"kernel_initializer": {"class_name": "VersionOfTheirs", "config": {}}},
    **{"kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.1}}},
)
NORM = plain("Conv/norm", "BatchNormalization", axis=[3], epsilon=0.01, renorm=False)
DEPTHWISE = plain(
    "depthwise", "DepthwiseConv2D", kernel_size=[3, 3], groups=1, activation="relu6"
)
BACKBONE = functional(
    "backbone",
    [
        image((None, None, None, 3), "input_2"),
        read(CONV, ["input_2", 0, 0, {}]),
        read(NORM, ["Conv/conv", 0, 0, {}]),
        read(DEPTHWISE, ["Conv/norm", 0, 0, {}]),
    ],
    *("input_2", "depthwise"),
)
NET = functional(
    "net",
    [
        image(),
        operation("tf.math.truediv", "math.truediv", "input_1", 0, 0, {"y": 255.0}),
        operation(
            *("tf.math.subtract", "math.subtract"),
            *("_CONSTANT_VALUE", -1, 1.0, {"y": ["tf.math.truediv", 0, 0]}),
        ),
        operation(
            *("slice", "__operators__.getitem", "tf.math.subtract", 0, 0),
            {"slice_spec": [{"class_name": "__ellipsis__"},
                            {"start": None, "stop": None, "step": -1}]},
        ),
        read(BACKBONE, ["slice", 0, 0, {"training": False}]),
        read(plain("gate", "Activation", activation="hard_sigmoid"),
             ["backbone", 1, 0, {}]),
        read(plain("merged", "Multiply"), ["gate", 0, 0, {}], ["backbone", 1, 0, {}]),
        operation("mean", "math.reduce_mean", "merged", 0, 0, {"axis": [1, 2]}),
        operation("both", "concat", ["mean", 0, 0, {"axis": -1}],
                  ["mean", 0, 0, {"axis": -1}]),
        read(plain("head", "Dense", units=5, activation="softmax"),
             ["both", 0, 0, {}]),
    ],
    *("input_1", "head"),
)  # fmt: skip


def net_of_today():
    """The same as `NET`."""
    inner = keras.Input((None, None, 3))
    tensor = layers.Conv2D(4, 3, padding="same", name="conv")(inner)
    tensor = layers.BatchNormalization(epsilon=0.01)(tensor)
    tensor = layers.DepthwiseConv2D(3, activation="relu6", name="depthwise")(tensor)
    backbone = keras.Model(inner, tensor, name="backbone")
    outer = keras.Input((8, 8, 3))
    tensor = backbone((1 - outer / 255)[..., ::-1])
    tensor = ops.clip(0.2 * tensor + 0.5, 0, 1) * tensor
    tensor = ops.concatenate([ops.mean(tensor, (1, 2))] * 2, -1)
    tensor = layers.Dense(5, activation="softmax", name="head")(tensor)
    return filled(keras.Model(outer, tensor))


def write_hdf5(file, entry, parts, version="2.9.0"):
    """As `model.save("x.h5")` of Keras 2: `parts` are pairs of name and layer."""
    with h5py.File(file, "w") as stored:
        stored.attrs["model_config"] = json.dumps(entry)
        stored.attrs["keras_version"] = version
        group = stored.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name, _ in parts]
        for name, layer in parts:
            weights = layer.trainable_weights + layer.non_trainable_weights
            names = [f"{name}/weight_{i}:0".encode() for i in range(len(weights))]
            inside = group.create_group(name)
            inside.attrs["weight_names"] = names
            for path, weight in zip(names, weights):
                inside[path.decode()] = np.asarray(weight)
    return file


def write_archive(file, model, change, version=None):
    """A .keras file of a model whose description is changed."""
    model.save(file.with_name("whole.keras"))
    with (
        zipfile.ZipFile(file.with_name("whole.keras")) as whole,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            if name == "config.json":
                content = json.dumps(change(json.loads(content)))
            elif name == "metadata.json" and version:
                content = json.dumps({"keras_version": version})
            archive.writestr(name, content)
    return file


def test_keras_2_hdf5_file_of_operations_and_inner_models_answers_as_then(tmp_path):
    model = net_of_today()
    parts = [(name, model.get_layer(name)) for name in ("backbone", "head")]
    file = write_hdf5(tmp_path / "a.h5", NET, parts)
    for _ in range(2):
        loaded = load_classifier(file)
        answers_equal(loaded, model)
    # All of it is Keras's own: it can be saved, copied and looked into.
    keras.models.clone_model(loaded)
    loaded.save(tmp_path / "again.keras")
    answers_equal(load_classifier(tmp_path / "again.keras"), model)


def test_keras_2_archive_answers_as_then(tmp_path):
    model = net_of_today()
    file = write_archive(tmp_path / "a.keras", model, lambda _: NET, "2.13.1")
    answers_equal(load_classifier(file), model)


@pytest.mark.slow
@rows("as_list", [True, False])
def test_sequential_of_the_first_keras_2_answers_as_then(as_list, tmp_path):
    """Of one more, wrapped; the image's shape stands in the first layer alone."""
    model = filled(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(4, 3),
                layers.LeakyReLU(negative_slope=0.1),
                layers.Reshape((6, 24)),
                layers.Bidirectional(layers.LSTM(3, recurrent_activation="sigmoid")),
                layers.Dense(5, name="dense"),
            ]
        )
    )
    lstm = plain("lstm", "LSTM", units=3, time_major=False, implementation=2)
    shape = {"batch_input_shape": [None, 8, 8, 3]}
    parts = [
        plain("conv", "Conv2D", filters=4, kernel_size=[3, 3], **shape),
        plain("leaky", "LeakyReLU", alpha=0.1),
        plain("rows", "Reshape", target_shape={"class_name": "__tuple__",
                                               "items": [6, 24]}),
        plain("both", "Bidirectional", merge_mode="concat", layer=lstm),
        plain("dense", "Dense", units=5, dtype={"class_name": "Policy",
                                                "config": {"name": "float32"}}),
    ]  # fmt: skip
    entry = {
        "class_name": "Sequential",
        "config": parts if as_list else {"name": "all", "layers": parts},
    }
    names = ("conv", "both", "dense")
    own = zip(names, (model.layers[0], model.layers[3], model.layers[4]))
    file = write_hdf5(tmp_path / "a.h5", entry, list(own), "2.2.4-tf")
    answers_equal(load_classifier(file), model)


@pytest.mark.slow
def test_layers_that_went_with_keras_2_are_what_they_were(tmp_path):
    image_3 = keras.Input((8, 8, 3))
    scaled = layers.Normalization(mean=[1.0] * 3, variance=[4.0] * 3)(image_3)
    tensor = ops.where(scaled > 2.0, scaled, 0.0)
    model = filled(keras.Model(image_3, layers.Dense(5)(layers.Flatten()(tensor))))
    norm = layers.Normalization()
    norm.build((None, 8, 8, 3))
    norm.adapt_mean.assign([1.0] * 3)
    norm.adapt_variance.assign([4.0] * 3)
    entry = functional(
        "net",
        [
            image(),
            read(plain("tall", "RandomHeight", factor=0.1, interpolation="bilinear"),
                 ["input_1", 0, 0, {}]),
            read(plain("norm", "Normalization", axis=[3], mean=None, variance=None),
                 ["tall", 0, 0, {}]),
            read(plain("cut", "ThresholdedReLU", theta=2.0), ["norm", 0, 0, {}]),
            read(plain("drop", "FixedDropout", rate=0.5, noise_shape=None),
                 ["cut", 0, 0, {}]),
            read(plain("maps", "SpatialDropout2D", rate=0.5, noise_shape=None),
                 ["drop", 0, 0, {}]),
            read(plain("flat", "Flatten"), ["maps", 0, 0, {}]),
            read(plain("dense", "Dense", units=5), ["flat", 0, 0, {}]),
        ],
        *("input_1", "dense"),
    )  # fmt: skip
    file = write_hdf5(
        tmp_path / "a.h5", entry, [("norm", norm), ("dense", model.layers[-1])]
    )
    answers_equal(load_classifier(file), model)


# Files of Keras 3, and how they are called.


@pytest.fixture(scope="module")
def model():
    """With operations on tensors, which Keras's own HDF5 reader does not know."""
    image_3 = keras.Input((8, 8, 3))
    tensor = layers.Conv2D(4, 3, name="conv")(image_3[:, ::-1] / 255)
    tensor = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(tensor))
    return filled(keras.Model(image_3, layers.Dense(5, name="head")(tensor)))


@pytest.fixture
def files(model, tmp_path):
    model.save(tmp_path / "whole.keras")
    model.save(tmp_path / "whole.h5")
    return tmp_path


def test_keras_files_are_told_by_content_not_by_name(files, model, monkeypatch):
    names = {"a.h5": "whole.keras", "a.keras": "whole.h5", "none": "whole.h5"}
    for name, original in names.items():
        shutil.copy(files / original, files / name)
    with zipfile.ZipFile(files / "whole.keras") as archive:
        archive.extractall(files / "unpacked")
    monkeypatch.setenv("HOME", str(files))
    for name in ("whole.keras", "whole.h5", *names, "unpacked"):
        answers_equal(load_network(files / name, "student"), model)
    answers_equal(load_classifier("~/a.h5"), model)


def test_saved_models_are_read_and_of_versions_the_newest(files, model):
    model.export(files / "saved", verbose=False)
    answers_equal(load_classifier(files / "saved"), model)
    answers_equal(load_classifier(files / "saved/saved_model.pb"), model)
    shutil.copytree(files / "saved", files / "versions/10")
    filled(keras.models.clone_model(model), 1).export(
        files / "versions/9", verbose=False
    )
    with pytest.warns(DistillationWarning, match=r"versions .* the newest, 10, is"):
        answers_equal(load_classifier(files / "versions"), model)
    with pytest.raises(RequestError, match=r"student .* SavedModel, which shows none"):
        load_network(files / "saved", "student")


def head(**changes):
    """A change of a description: other values in its last layer."""

    def change(entry):
        last = entry["config"]["layers"][-1]
        last["config"].update(changes.pop("config", {}))
        last.update(changes)
        return entry

    return change


@pytest.mark.slow
def test_argument_of_a_newer_keras_is_named_unless_it_is_unused(tmp_path, model):
    file = tmp_path / "a.keras"
    write_archive(file, model, head(config={"sparkle": None}), "3.99.0")
    answers_equal(load_classifier(file), model)
    write_archive(file, model, head(config={"sparkle": 3}), "3.99.0")
    with pytest.raises(
        RequestError, match=r"head \(Dense\) .* sparkle=3, .* by Keras 3\.99\.0; here"
    ):
        load_classifier(file)


@rows(
    "change, words",
    [
        (head(class_name="Magic", module="theirs", registered_name="theirs>Magic"),
         r"Layer head is of the class Magic, .* model\.export"),
        (head(class_name="system", module="os", config={}),
         "Layer head is of the class system"),
        (head(config={"activation": "wow"}), r"Layer head \(Dense\): .*wow"),
        (head(class_name="TFSMLayer", config={}), "TFSMLayer, a SavedModel"),
        (head(class_name="TFOpLambda", config={"function": "io.write_file"}),
         r"Layer head is the operation tf\.io\.write_file of Keras 2"),
        (head(class_name="TFOpLambda", config={"function": "compat.v1.image.resize"}),
         r"the operation tf\.compat\.v1\.image\.resize of Keras 2"),
    ],
)  # fmt: skip
def test_layer_at_fault_is_named(change, words, tmp_path, model):
    file = write_archive(tmp_path / "a.keras", model, change)
    with pytest.raises(RequestError, match=f"Cannot read teacher .*{words}"):
        load_classifier(file)


@rows("suffix", [".keras", ".h5"])
def test_a_lambda_is_never_run(tmp_path, suffix):
    tensor = keras.Input((8, 8, 1))
    model = keras.Model(tensor, layers.Lambda(lambda x: x * 2, name="twice")(tensor))
    model.save(tmp_path / f"a{suffix}")
    with pytest.raises(RequestError, match="Layer twice is a Lambda, Python code"):
        load_classifier(tmp_path / f"a{suffix}")


# What is no model that is read.


def zipped(**members):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name.replace("__", "/"), content)

    return write


def packed_saved_model(file):
    inside = file.with_name("inside")
    (inside / "net").mkdir(parents=True)
    (inside / "net/saved_model.pb").write_bytes(b"\x08\x01\x12\x80")
    archive = shutil.make_archive(str(inside), "gztar", inside)
    pathlib.Path(archive).rename(file)


def frozen_graph(file):
    with tf.Graph().as_default() as graph:
        tf.nn.relu(tf.compat.v1.placeholder(tf.float32, (None, 3), name="input"))
    file.write_bytes(graph.as_graph_def().SerializeToString())


def other_hdf5(*names, **attributes):
    def write(file):
        with h5py.File(file, "w") as stored:
            stored.attrs.update(attributes)
            for name in names:
                stored[name] = 1.0

    return write


KINDS = [
    (b"", "empty"),
    (b"not a model", "a text file that begins 'not a model'"),
    (bytes(range(128, 256)) * 9, "cut off, damaged, or another kind"),
    (b"PK\x03\x04 broken", r"cut off or damaged, and was a \.keras file"),
    (b"\x89HDF\r\n\x1a\n broken", "a cut off or damaged HDF5"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    (b"\n<!DOCTYPE html>\n<html></html>", "a web page, not the model"),
    (b'{"class_name": "Sequential"}', "JSON text, at most the plan"),
    (pickle.dumps({"a": 1}), "a Python pickle, a program that is not run"),
    (b'\x20\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}', r"a safetensors .*import_torch"),
    (b"\x08\x01\x12\xf0\x01", r"the saved_model\.pb of a SavedModel"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"of PyTorch\. python -m .*import_"),
    (zipped(net__data__0=b"", **{"net__data.pkl": b""}), r"of PyTorch\. python -m"),
    (zipped(**{"a__data.pkl": b"", "a__constants.pkl": b""}), "a TorchScript program"),
    (
        zipped(**{"saved_model.pb": b"", "x": b""}),
        "of a SavedModel. Unpack it and name",
    ),
    (zipped(**{"net__a.keras": b""}), r"Unpack it and name net/a\.keras"),
    (packed_saved_model, "of a SavedModel. Unpack it and name its folder ./net"),
    (frozen_graph, "a frozen graph of TensorFlow 1"),
    (lambda file: np.savez(file.open("wb"), a=1), r"NumPy arrays \(\.npz\)"),
    (other_hdf5("layers"), r"weights without their network\. Build it"),
    (other_hdf5(layer_names=[b"a"]), "weights without their network"),
    (other_hdf5("pictures"), "an HDF5 file without a Keras model; it holds pictures"),
]


@rows("content, words", KINDS)
def test_file_that_is_not_read_is_called_what_it_is(content, words, tmp_path):
    file = tmp_path / "teacher.keras"
    content(file) if callable(content) else file.write_bytes(content)
    for load in (load_classifier, lambda file: load_network(file, "teacher")):
        with pytest.raises(RequestError, match=rf"teacher\.keras: it is .*{words}"):
            load(file)


@pytest.mark.slow
def test_files_cut_off_anywhere_are_refused_in_one_sentence(files):
    for original in ("whole.keras", "whole.h5"):
        content = (files / original).read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            (files / "cut").write_bytes(content[: int(len(content) * share)])
            with pytest.raises(
                RequestError, match=r"Cannot read teacher .*cut"
            ) as info:
                load_classifier(files / "cut")
            assert "\n" not in str(info.value)


def test_hdf5_file_that_would_never_end_is_refused_in_time(tmp_path, monkeypatch):
    """As damage in an attribute can make of it: its library goes in circles."""
    file, mark = tmp_path / "a.h5", tmp_path / "reading"
    toys.classifier(seed=0).save(file)
    with h5py.File(file, "a") as opened:
        opened.create_group("a")  # read before the others, and has nothing
    assert load_classifier(file)
    monkeypatch.setattr(loading, "_READ_SECONDS", 2)
    whole = h5py.AttributeManager.__getitem__

    def endless(self, name):
        if name == "weight_names":  # of the layers, far inside
            mark.touch()
            time.sleep(600)
        return whole(self, name)

    monkeypatch.setattr(h5py.AttributeManager, "__getitem__", endless)
    with pytest.raises(RequestError, match=r"damaged: reading it .* more than 2 s"):
        load_classifier(file)
    assert mark.exists()


def test_folder_without_one_model_tells_what_is_in_it(files):
    with pytest.raises(RequestError, match=r"a folder around 2 model\(s\)\. Name them"):
        load_classifier(files)
    for name, words in [
        ("empty", r"is a folder: expected a \.keras file, .*; it is empty"),
        ("notes", r"it holds notes\.txt"),
        ("weights", "of TensorFlow checkpoints, weights without"),
    ]:
        (files / name).mkdir()
        if name != "empty":
            (files / name / {"notes": "notes.txt", "weights": "a.index"}[name]).touch()
        with pytest.raises(RequestError, match=words):
            load_classifier(files / name)


def test_absent_and_closed_files_are_told_apart(files):
    with pytest.raises(RequestError, match=r"There is no student file .*absent"):
        load_network(files / "absent", "student")
    if os.geteuid():
        (files / "whole.h5").chmod(0)
        with pytest.raises(RequestError, match="closed: you may not read it"):
            load_classifier(files / "whole.h5")


@pytest.mark.slow
def test_saved_model_that_touches_files_is_refused(tmp_path):
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1))])
        def serve(self, images):
            tf.io.write_file(str(tmp_path / "pwned"), "x")
            return tf.reduce_mean(images, (1, 2)) * tf.ones((1, 4))

    module = Reader()
    tf.saved_model.save(
        module, str(tmp_path / "saved"), {"serving_default": module.serve}
    )
    with pytest.raises(RequestError, match="WriteFile"):
        load_classifier(tmp_path / "saved")
    assert not (tmp_path / "pwned").exists()


@rows("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value, tmp_path):
    network = toys.classifier()
    bias = np.array([0, value, 0, 1])
    network.layers[-1].bias.assign(bias)
    network.save(tmp_path / "a.keras")
    network.export(tmp_path / "saved", verbose=False)
    name = rf"{network.layers[-1].name}/bias .*1 NaN or infinite values of 4"
    with pytest.raises(RequestError, match=rf"Student .*a\.keras: weight .*{name}"):
        load_network(tmp_path / "a.keras", "student")
    with pytest.raises(RequestError, match=r"saved: weight .*1 NaN or infinite"):
        load_classifier(tmp_path / "saved")
    check_finite(toys.classifier(), "a whole one")
