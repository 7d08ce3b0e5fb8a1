"""ONNX files become Keras models that answer, and differentiate, as they say."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.errors import DistillationWarning
from cdfkd_tf.networks.black_box import read_onnx
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.networks.preprocessing import find_values
from cdfkd_tf.runtime.keras_internals import leaf_layers
from cdfkd_tf.tools import import_torch
from tests.rows import rows

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FLOAT = onnx.TensorProto.FLOAT


class File:
    """An ONNX file written operation by operation."""

    def __init__(self, shape=("n", 3, 8, 8), opset=17, seed=0):
        self.nodes, self.constants, self.last = [], [], "image"
        self.shape, self.opset = list(shape), opset
        self.rng, self.count = np.random.default_rng(seed), itertools.count()

    def constant(self, value):
        """A weight: its name."""
        value = np.asarray(value)
        value = value.astype("float32") if value.dtype.kind == "f" else value
        name = f"c{next(self.count)}"
        self.constants.append(onnx.numpy_helper.from_array(value, name))
        return name

    def normal(self, *shape):
        """A random weight: its name."""
        return self.constant(self.rng.normal(size=shape) * 0.5)

    def positive(self, *shape):
        """A random weight above 0: its name."""
        return self.constant(self.rng.uniform(0.5, 1.5, shape))

    def add(self, operator, *inputs, **attributes):
        """An operation after the last one, or of the named inputs: its output."""
        outputs = [f"t{next(self.count)}" for _ in range(attributes.pop("outputs", 1))]
        inputs = [self.last if name is None else name for name in inputs]
        self.nodes.append(
            onnx.helper.make_node(operator, inputs, outputs, **attributes)
        )
        self.last = outputs[0]
        return self.last

    def norm(self, width):
        """A BatchNormalization as if trained."""
        weights = [self.positive(width), self.normal(width)]
        memory = [self.normal(width), self.positive(width)]
        return self.add("BatchNormalization", None, *weights, *memory, epsilon=1e-3)

    def head(self, width, classes=4):
        """Means over the sides, and logits."""
        self.add("GlobalAveragePool", None)
        self.add("Flatten", None)
        return self.add("Gemm", None, self.normal(width, classes), self.normal(classes))

    def save(self, path, kind=FLOAT):
        image = onnx.helper.make_tensor_value_info("image", kind, self.shape)
        rows = onnx.helper.make_tensor_value_info(self.last, FLOAT, None)
        graph = onnx.helper.make_graph(self.nodes, "g", [image], [rows], self.constants)
        opset = [onnx.helper.make_opsetid("", self.opset)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.save(model, str(path))
        return path


def opened(file, path):
    """The model of a file, checked against ONNX Runtime on one and on five images."""
    path = file.save(path / "a.onnx")
    model = load_classifier(path)
    assert isinstance(model, keras.Model)
    shape = [side or 8 for side in model.input_shape[1:]]
    images = np.random.default_rng(1).normal(size=(5, *shape)).astype("float32")
    expected = read_onnx(path)(images)
    for count in (1, 5):
        np.testing.assert_allclose(
            model(images[:count]), expected[:count], rtol=1e-4, atol=1e-4
        )
    return model


def mobile(file):
    """A block of each kind: strides and padding, depthwise, groups, gates, sums."""
    width = 8
    file.add("Conv", None, file.normal(width, 3, 3, 3), strides=[2, 2], pads=[1] * 4)
    file.norm(width)
    low, high = file.constant(np.float32(0)), file.constant(np.float32(6))
    trunk = file.add("Clip", None, low, high)
    file.add("Conv", None, file.normal(width, 1, 3, 3), group=width, pads=[1] * 4)
    file.norm(width)
    file.add("HardSwish", None)
    file.add("Conv", None, file.normal(width, 2, 1, 1), file.normal(width), group=4)
    body = file.last
    file.add("GlobalAveragePool", None)
    gate = file.add("HardSigmoid", None, alpha=1 / 6)
    file.add("Mul", body, gate)
    file.add("Add", trunk, file.last)
    file.add("MaxPool", None, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    file.head(width)
    return file


@rows("shape", [("n", 3, 8, 8), (1, 3, 8, 8), ("n", 3, "h", "w")])
def test_network_keeps_answers_and_batch_norms(shape, tmp_path):
    model = opened(mobile(File(shape)), tmp_path)
    norms = [x for x in leaf_layers(model) if type(x).__name__ == "BatchNormalization"]
    assert len(norms) == 2
    file = File(shape)
    mobile(file)
    stored = {c.name: onnx.numpy_helper.to_array(c) for c in file.constants}
    first = next(node for node in file.nodes if node.op_type == "BatchNormalization")
    for weight, name in zip(norms[0].get_weights(), first.input[1:]):
        np.testing.assert_array_equal(weight, stored[name])
    assert norms[0].epsilon == pytest.approx(1e-3)
    again = tmp_path / "again.keras"  # by Keras alone
    model.save(again)
    images = np.random.default_rng(2).random((2, 8, 8, 3), "float32")
    loaded = keras.saving.load_model(again, safe_mode=True)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_gradient_of_opened_network_is_that_of_finite_differences(tmp_path):
    file = File()
    file.add("Conv", None, file.normal(6, 3, 3, 3), pads=[1] * 4)
    file.norm(6)
    file.add("Sigmoid", None)
    file.head(6)
    model = opened(file, tmp_path)
    rng = np.random.default_rng(3)
    image, step = (tf.constant(rng.normal(size=(1, 8, 8, 3)), "float32") for _ in "ab")
    with tf.GradientTape() as tape:
        tape.watch(image)
        logit = model(image)[0, 0]
    slope = tf.reduce_sum(tape.gradient(logit, image) * step)
    ends = [model(image + sign * 1e-2 * step)[0, 0] for sign in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-2, rtol=2e-3)


def shuffle(file):
    """Halves, channels shuffled by shapes that the file computes, halves joined."""
    picture = file.add("Conv", None, file.normal(8, 3, 3, 3), pads=[1, 1, 0, 0])
    shape = file.add("Shape", picture)
    count = file.add("Gather", shape, file.constant(np.int64(0)), axis=0)
    batch = file.add("Unsqueeze", count, file.constant(np.array([0])))
    sides = file.constant(np.array([2, 4, 7, 7]))
    split = file.add("Concat", batch, sides, axis=0)
    file.add("Reshape", picture, split)
    file.add("Transpose", None, perm=[0, 2, 1, 3, 4])
    file.add("Reshape", None, file.constant(np.array([0, -1, 7, 7])))
    whole = file.last
    halves = file.constant(np.array([3, 5]))
    left = file.add("Split", whole, halves, axis=1, outputs=2)
    right = file.nodes[-1].output[1]
    file.add("Concat", right, left, axis=1)
    file.add("Slice", None, *(file.constant(np.array([v])) for v in (6, 0, 1, -2)))
    file.add("AveragePool", None, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    file.head(3)
    return file


def attention(file):
    """Patches as words, a class word in front, one head of attention."""
    file.add("Conv", None, file.normal(6, 3, 4, 4), strides=[4, 4])
    file.add("Reshape", None, file.constant(np.array([file.count_of_images, 6, -1])))
    words = file.add("Transpose", None, perm=[0, 2, 1])
    shape = file.constant(np.array([file.count_of_images, 1, 6]))
    if not file.count_of_images:  # as many as there are
        sides = file.add("Shape", words)
        first = file.add("Slice", sides, *map(file.constant, ([0], [1], [0])))
        shape = file.add("Concat", first, file.constant(np.array([1, 6])), axis=0)
    word = file.add("Expand", file.normal(1, 1, 6), shape)
    file.add("Concat", word, words, axis=1)
    file.add("Add", None, file.normal(1, 5, 6))
    x = file.add("LayerNormalization", None, file.positive(6), file.normal(6))
    parts = []
    for _ in range(3):
        file.add("MatMul", x, file.normal(6, 6))
        parts.append(file.add("Add", file.normal(6), file.last))
    turned = file.add("Transpose", parts[1], perm=[0, 2, 1])
    file.add("MatMul", parts[0], turned)
    file.add("Softmax", None, axis=-1)
    file.add("MatMul", None, parts[2])
    file.add("Gelu" if file.opset >= 20 else "Erf", None)
    file.add("Gather", None, file.constant(np.int64(0)), axis=1)
    file.add("Gemm", None, file.normal(4, 6), transB=1)
    return file


def test_shapes_that_a_file_computes_are_followed(tmp_path):
    opened(shuffle(File()), tmp_path)


@rows("count, shape", [(0, ("n", 3, 8, 8)), (1, (1, 3, 8, 8))])
def test_attention_is_followed_for_fixed_and_open_batches(count, shape, tmp_path):
    file = File(shape)
    file.count_of_images = count
    model = opened(attention(file), tmp_path)
    assert sum(type(x).__name__ == "Dense" for x in model.layers) == 4


def test_channels_last_file_of_another_framework_is_read(tmp_path):
    file = File(("n", 8, 8, 3))
    file.add("Transpose", None, perm=[0, 3, 1, 2])
    file.add("Conv", None, file.normal(5, 3, 3, 3), auto_pad="SAME_UPPER")
    file.add("Relu", None)
    file.add("Transpose", None, perm=[0, 2, 3, 1])
    file.add("ReduceMean", None, axes=[1, 2], keepdims=0)
    file.add("MatMul", None, file.normal(5, 4))
    file.add("Softmax", None)
    model = opened(file, tmp_path)
    assert not any(type(x).__name__ == "Transpose" for x in model.operations)


def test_preprocessing_in_the_file_tells_its_pixel_values(tmp_path):
    file = File()
    file.add("Div", None, file.constant(255.0))
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    file.add("Sub", None, file.constant(np.reshape(mean, (1, 3, 1, 1))))
    file.add("Div", None, file.constant(np.reshape(std, (1, 3, 1, 1))))
    mobile(file)
    found = find_values(opened(file, tmp_path), (8, 8, 3))
    assert found.values == "0..255" and found.is_certain


def test_unknown_operator_is_named_and_its_file_still_answers(tmp_path, capsys):
    file = File()
    file.add("Conv", None, file.normal(4, 3, 3, 3))
    file.add("Round", None)
    file.head(4)
    path = file.save(tmp_path / "a.onnx")
    with pytest.warns(DistillationWarning, match="only answers.*operator Round"):
        model = load_classifier(path)
    assert not isinstance(model, keras.Model)
    assert model(np.zeros((2, 8, 8, 3))).shape == (2, 4)
    assert import_torch.main([str(path), str(tmp_path / "a.keras")]) == 2
    assert "operator Round" in capsys.readouterr().err


def test_import_writes_the_opened_network(tmp_path, capsys):
    path, target = mobile(File()).save(tmp_path / "a.onnx"), tmp_path / "a.keras"
    assert import_torch.main([str(path), str(target)]) == 0
    assert "2 of them BatchNormalizations" in capsys.readouterr().out
    images = np.random.default_rng(0).random((2, 8, 8, 3), "float32")
    rows = keras.saving.load_model(target)(images)
    np.testing.assert_allclose(rows, read_onnx(path)(images), rtol=1e-4, atol=1e-5)


def test_file_without_batch_norms_says_how_they_are_kept(tmp_path):
    file = File()
    file.add("Conv", None, file.normal(4, 3, 3, 3), file.normal(4))
    file.head(4)
    with pytest.warns(DistillationWarning, match="optimize=False"):
        load_classifier(file.save(tmp_path / "a.onnx"))


OTHERS = {
    "GroupNorm": (21, lambda f: f.add(
        "GroupNormalization", None, f.positive(6), f.normal(6), num_groups=3
    )),
    "InstanceNorm": (11, lambda f: f.add(
        "InstanceNormalization", None, f.positive(6), f.normal(6)
    )),
    "LRN": (13, lambda f: f.add("LRN", None, size=3, alpha=0.1)),
    "PRelu": (16, lambda f: f.add("PRelu", None, f.positive(6, 1, 1))),
    "LeakyRelu": (11, lambda f: f.add("LeakyRelu", None, alpha=0.2)),
    "old Softmax": (11, lambda f: f.add("Softmax", None, axis=1)),
    "average": (19, lambda f: f.add(
        "AveragePool", None, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
        ceil_mode=1, count_include_pad=1,
    )),
    "average of pixels": (11, lambda f: f.add(
        "AveragePool", None, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]
    )),
    "lower same": (13, lambda f: f.add(
        "MaxPool", None, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"
    )),
    "dilated": (13, lambda f: f.add(
        "Conv", None, f.normal(6, 6, 3, 3), dilations=[2, 2], pads=[2] * 4
    )),
    "multiplier": (13, lambda f: [
        f.add("Conv", None, f.normal(12, 1, 3, 3), group=6),
        f.add("Conv", None, f.normal(6, 12, 1, 1)),
    ]),
    "pad": (13, lambda f: f.add(
        "Pad", None, f.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1])), mode="reflect"
    )),
    "resize": (13, lambda f: f.add(
        "Resize", None, "", f.constant(np.float32([1, 1, 2, 2])), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )),
    "squeeze": (13, lambda f: [
        f.add("Unsqueeze", None, f.constant(np.array([2]))),
        f.add("Squeeze", None, f.constant(np.array([2]))),
    ]),
    "Where": (13, lambda f: f.add(
        "Where", f.constant(np.eye(7, dtype=bool)), f.last, f.constant(np.float32(2))
    )),
    "L2": (13, lambda f: f.add("Div", f.last, f.add("ReduceL2", None, axes=[1]))),
    "variadic": (13, lambda f: f.add(
        "Max", f.last, f.normal(6, 1, 1), f.add("Neg", None)
    )),
}  # fmt: skip


@pytest.mark.slow
@rows("name", OTHERS)
def test_operator_answers_as_in_the_runtime(name, tmp_path):
    opset, add = OTHERS[name]
    file = File(("n", 3, 9, 9), opset)
    file.add("Conv", None, file.normal(6, 3, 3, 3))
    file.norm(6)
    add(file)
    file.head(6)
    opened(file, tmp_path)


@pytest.mark.slow
@rows("opset", range(11, 22))
def test_every_opset_is_read(opset, tmp_path):
    file = File((2, 3, 8, 8), opset)  # a batch of two in the file
    if opset < 14:
        file.add("Clip", None, file.constant(np.float32(-1)))
    file.add("Conv", None, file.normal(6, 3, 3, 3), file.normal(6))
    file.norm(6)
    axes = {"axes": [2, 3]} if opset < 18 else {}
    given = [] if axes else [file.constant(np.array([2, 3]))]
    file.add("ReduceMean", None, *given, keepdims=1, **axes)
    file.add("Reshape", None, file.constant(np.array([2, 6])))
    file.add("Gemm", None, file.normal(6, 4), file.normal(1, 4), alpha=0.5, beta=2.0)
    opened(file, tmp_path)
