"""How much memory a run takes, estimated before its first step.

From the shapes of all tensors of one forward pass of each network: those that the
backward pass reads are counted, at the batch of a training step; to these come weights,
optimisers' state and what graphs take. Nothing else grows with images: measuring,
agreement and pictures take no larger batches.

The constants were fitted to measured peaks (float32, CPU, TensorFlow 2.21):

| teachers, student | batch | estimated, MB | measured, MB |
|---|---|---|---|
| 3 wrn16_1, wrn10_1, 16x16 | 64 | 1057 | 994 |
| 3 wrn40_2, wrn16_1, 32x32 | 16 | 1476 | 1445 |
| the same | 64 | 2628 | 2698 |
| the same, teachers recomputed | 64 | 1804 | 1797 |
| 3 resnet34, resnet18, 32x32 | 8 | 2079 | 2202 |
| 3 MobileNetV2, MobileNetV3Small, 224x224 | 4 | 4231 | 4073 |
| the same | 16 | 8416 | 8643 |
| 3 EfficientNetB0, MobileNetV3Small, 224x224 | 4 | 4500 | 4432 |
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import resource
import warnings
from collections.abc import Callable, Iterator, Mapping

import keras
import tensorflow as tf

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

_FLOAT = 4  # bytes; half precision measures no smaller: copies come to it
# Kinds of operations whose outputs are read by gradients: of their own inputs or, as
# BatchNormalization reads convolutions, of what follows.
_READ = frozenset(
    ("Conv2D", "Conv2DBackpropInput", "DepthwiseConv2dNative", "MatMul", "MaxPool")
    + ("BatchMatMulV2", "BatchMatMulV3", "Einsum", "Relu", "Relu6", "LeakyRelu", "Elu")
    + ("Selu", "Sigmoid", "Tanh", "Softplus", "Softmax", "Erf")
)
# Of networks that learn also what convolutions read.
_READ_BY_KERNELS = _READ | {"Pad", "Tile", "ConcatV2"}
_BACKWARD = 6  # of the largest tensors are there at once, in a backward pass
_FORWARD = 3  # the same without gradients
_GRAPH, _PER_OPERATION = 150e6, 70e3  # bytes of a training graph, and per forward one
_EXPORT, _PER_WEIGHT = 450e6, 25  # bytes of the converters; times the student's weights
_WORTH_TRACING = 2**17  # numbers in a batch of images; fewer take no gigabytes
_SURE = 0.8  # of an estimate is needed for sure


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory at the peak of a run.

    Attributes:
        parts: what takes it -> bytes.
        remedies: flags that need less, the best one first.
    """

    parts: Mapping[str, float]
    remedies: tuple[str, ...]

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        said = ", ".join(f"{size / 1e9:.1f} for {part}" for part, size in parts[:3])
        return f"This run takes about {self.total / 1e9:.1f} GB of memory ({said})"


def estimate(
    config: RunConfig,
    teachers: TeacherEnsemble,
    student: keras.Model,
    generator: keras.Model | None = None,
    bank_size: int = 0,
) -> Estimate | None:
    """What distilling and exporting will take, this process so far included.

    Args:
        config: batch, steps per iteration, whether teachers are recomputed.
        teachers: frozen, loaded.
        student: untrained, at the images' size.
        generator: the same; None: the method has none.
        bank_size: images that are kept with the teachers' answers; 0: none.

    Returns:
        None where GPUs compute, or images are too small to need much.
    """
    shape = student.input_shape[1:]
    image = math.prod(shape)
    batch, steps = config.batch_size, config.student_steps
    small = batch * image < _WORTH_TRACING and bank_size * image < 2**28
    if small or tf.config.list_physical_devices("GPU"):
        return None
    needs = frozenset({"bn_statistics"})
    of_teachers = [
        _forward(lambda x, one=one: one(x, needs).logits, shape, batch)
        for one in teachers.teachers
    ]
    learning = [_forward(lambda x: student(x, training=True), shape, batch)]
    own = _weights(student)
    states, gradients = own, own  # momentum; a gradient while it is applied
    kept = [network.read for network in of_teachers]
    largest = [network.largest for network in of_teachers]
    if generator is None:  # teachers are asked, and pass no gradient
        kept, backward = [0.0], max(network.largest for network in learning)
    else:
        form = generator.input_shape[1:]
        learning.append(_forward(lambda z: generator(z, training=True), form, batch))
        states, gradients = own + 2 * _weights(generator), _weights(generator)
        backward = max(largest) if config.recompute_teachers else sum(largest)
        kept = [max(kept)] if config.recompute_teachers else kept
    asked = batch if bank_size else batch * steps  # images at once, without gradients
    forward = _FORWARD * sum(largest) * asked / batch
    activations = sum(kept) + _BACKWARD * backward
    operations = sum(network.operations for network in (*of_teachers, *learning))
    name = "what the teachers compute of one batch"
    distilling = {
        name: max(activations, forward),
        "what student and generator compute of it": max(
            sum(network.read_by_kernels for network in learning), gradients
        ),
        "the optimisers": states,
        "images kept and drawn": (2 * bank_size + 5 * batch * steps) * image
        if bank_size
        else 2 * batch * steps * image * _FLOAT,
    }
    exporting = {}
    if config.export_formats:
        exporting = {"converters": _EXPORT + _PER_WEIGHT * own}
    peak = max(distilling, exporting, key=lambda parts: sum(parts.values()))
    remedies = [f"a --batch_size below {batch}"]
    if generator is not None and not config.recompute_teachers:
        remedies.append("--recompute_teachers")
    if peak is exporting:
        remedies = ["a smaller --student_width", "fewer --export_formats"]
    elif states > sum(peak.values()) / 2:
        remedies = ["a smaller --latent_size or --generator_width", *remedies]
    fixed = {"what is loaded": held(), "graphs": _GRAPH + _PER_OPERATION * operations}
    return Estimate({**fixed, **peak}, tuple(remedies))


def check(estimated: Estimate | None) -> None:
    """Refuses what clearly cannot fit into this machine; warns where it is close.

    Raises:
        RequestError: the estimate, what takes most of it, and what needs less.
    """
    total, available = machine_memory()
    if estimated is None or estimated.total - held() <= available:
        return
    remedies = " or ".join(estimated.remedies)
    if estimated.total * _SURE > total:
        raise RequestError(
            f"{estimated}, and this machine has {total / 1e9:.1f} GB. Less take "
            f"{remedies}."
        )
    warnings.warn(
        f"{estimated}, and {available / 1e9:.1f} GB are free. If it does not fit, less "
        f"take {remedies}.",
        DistillationWarning,
        stacklevel=2,
    )


def held() -> float:
    """Bytes that this process holds now; where that is not told, the most it held."""
    with contextlib.suppress(OSError):
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * float(resource.getpagesize())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def machine_memory() -> tuple[float, float]:
    """Bytes that this machine, or this container, has in all and has left."""
    total = os.sysconf("SC_PHYS_PAGES") * float(os.sysconf("SC_PAGE_SIZE"))
    available = total
    with contextlib.suppress(OSError, ValueError):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines)
        available = int(table["MemAvailable"].split()[0]) * 1024.0
    for limit, used in _limits():
        total, available = min(total, limit), min(available, limit - used)
    return total, available


def _limits() -> Iterator[tuple[float, float]]:
    """Limit and use of each control group that this process is in (Linux)."""
    files = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": (
            *("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
    }
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers not in files:
                continue
            limit, used, cache = files[controllers]
            root = pathlib.Path("/sys/fs/cgroup") / controllers
            for folder in {root, root / place.lstrip("/")}:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    pairs = (folder / "memory.stat").read_text().split()
                    reclaimable = int(dict(zip(pairs[::2], pairs[1::2]))[cache])
                    most = float((folder / limit).read_text())
                    yield most, int((folder / used).read_text()) - reclaimable


@dataclasses.dataclass(frozen=True)
class _Forward:
    """Bytes of one batch's forward pass, and how many operations it has."""

    read: float
    read_by_kernels: float
    largest: float
    operations: int


def _forward(function: Callable, shape: tuple[int, ...], batch: int) -> _Forward:
    """Traces `function` of a batch, models that are graphs themselves included."""
    images = tf.TensorSpec((batch, *shape), keras.config.floatx())
    graph = tf.function(function, autograph=False).get_concrete_function(images).graph
    definition = graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node]
    for inner in definition.library.function:
        nodes += inner.node_def
    read = read_by_kernels = largest = 0.0
    for node in nodes:
        for shape in node.attr["_output_shapes"].list.shape:
            sides = [axis.size for axis in shape.dim]
            if len(sides) < 2 or sides[0] not in (-1, batch) or min(sides[1:]) < 0:
                continue
            size = float(_FLOAT * batch * math.prod(sides[1:]))
            largest = max(largest, size)
            read += size * (node.op in _READ)
            read_by_kernels += size * (node.op in _READ_BY_KERNELS)
    return _Forward(read, read_by_kernels, largest, len(nodes))


def _weights(network: keras.Model) -> float:
    return float(_FLOAT * network.count_params())
