"""What each shipped flagfile costs on one modern GPU and on eight.

python experiments/cost.py

Computed, not measured. One GPU: counted multiply-adds at 40 T/s, a quarter of the dense
bfloat16 peak of an NVIDIA A100 (312 TFLOP/s are 156 Tmultiply-adds/s). Float32 through
its TF32 units takes about twice as long. Eight GPUs share each batch: an eighth of the
operations at the same rate, plus the messages between replicas, see `Messages`.
"""

import dataclasses
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SUSTAINED = 40e12  # multiply-adds per second
REPLICAS = 8
DELAY = 50e-6  # seconds per message among eight GPUs, small ones included
BANDWIDTH = 150e9  # bytes per second and GPU, of an all-reduce over NVLink
OUTGOING = 300e9  # bytes per second that one GPU sends over NVLink
TRAINING_IMAGES = {
    "digits": 1437,
    "mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "caltech101": 6_941,
    "mini_imagenet": 48_000,
}
# Keras's synchronised BatchNormalization: sum, sum of squares and count forward, the
# first two backward. Losses' statistics: see `losses.bn_gap`.
NORM_FORWARD, NORM_BACKWARD, STATISTICS = 3, 2, 4


@dataclasses.dataclass(frozen=True)
class Messages:
    """Messages between replicas.

    Attributes:
        count: all-reduces.
        size: bytes of the large ones, the gradients.
        copied: bytes of teachers, which are on the first GPU and read by all.
    """

    count: int
    size: int
    copied: int

    @property
    def seconds(self) -> float:
        """An all-reduce sends and receives 2 (n - 1) / n of its bytes."""
        passed = 2 * (REPLICAS - 1) / REPLICAS * self.size
        spread = (REPLICAS - 1) * self.copied
        return self.count * DELAY + passed / BANDWIDTH + spread / OUTGOING


@dataclasses.dataclass(frozen=True)
class Cost:
    """One flagfile's.

    Attributes:
        what: the method, or `teachers`.
        updates: of the student; of each teacher.
        compute: seconds of one GPU.
        messages: of the whole run on eight; None: it uses one, as teachers in training
            do.
    """

    what: str
    updates: int
    compute: float
    messages: Messages | None

    @property
    def on_eight(self) -> float:
        """Seconds."""
        if self.messages is None:
            return self.compute
        return self.compute / REPLICAS + self.messages.seconds

    @property
    def efficiency(self) -> float:
        """Share of eight times the speed of one."""
        return self.compute / REPLICAS / self.on_eight


def norms(model) -> int:
    """BatchNormalizations in it."""
    import keras

    from cdfkd_tf.runtime.keras_internals import leaf_layers

    kind = keras.layers.BatchNormalization
    return sum(isinstance(layer, kind) for layer in leaf_layers(model))


def weight_bytes(model) -> int:
    """Of its gradients, in float32."""
    return 4 * sum(math.prod(weight.shape) for weight in model.trainable_weights)


def iteration_messages(student, generator, teacher, config, method, count) -> Messages:
    """Of one iteration: student steps, then the generator step.

    Args:
        student: network, as the next two; generator may be None.
        generator: of the run.
        teacher: one of `count`.
        config: of the run.
        method: of the run, its weights as the run has them.
        count: number of teachers.
    """
    both = NORM_FORWARD + NORM_BACKWARD
    steps, of_student = config.student_steps, both * norms(student)
    read = 4 * count * teacher.count_params()
    if generator is None:
        return Messages(of_student + 1, weight_bytes(student), read)
    messages = steps * (NORM_FORWARD * norms(generator) + of_student + 1)
    messages += both * norms(generator) + of_student + 1
    if method.generator.get("bn") and norms(teacher):
        messages += STATISTICS * count
    size = steps * weight_bytes(student) + weight_bytes(generator)
    # Teachers are read twice: folded for student steps, and as they are.
    return Messages(messages, size, 2 * read)


def cost_of(flagfile: str) -> Cost:
    """Counted from the networks that the flagfile builds."""
    from absl import flags as absl_flags

    from cdfkd_tf import cli
    from cdfkd_tf.data.specs import spec_of
    from cdfkd_tf.distillation import build
    from cdfkd_tf.networks.classifiers import build_classifier
    from cdfkd_tf.networks.introspection import multiply_adds
    from experiments.iteration_cost import iteration_multiply_adds

    values = absl_flags.FlagValues()
    cli.define(values)
    config = cli.parse(["", f"--flagfile={flagfile}"], values)
    spec = spec_of(config.dataset)
    shape = (spec.image_shape, spec.num_classes)
    network = pathlib.Path(config.teachers[0]).parts[2] if config.teachers else ""
    network = network.removeprefix("teachers_") or config.teacher_network
    teacher = build_classifier(network, *shape, width=config.teacher_width)
    if config.action == "train_teachers":
        images = TRAINING_IMAGES[config.dataset] * config.teacher_epochs
        total = 3 * multiply_adds(teacher) * images * config.num_teachers
        updates = images // config.teacher_batch_size
        return Cost("teachers", updates, total / SUSTAINED, None)
    method = build.build_method(config)
    num_teachers = len(config.teachers) or config.num_teachers
    student = build.build_student(config, spec, num_teachers)
    generator = build.build_generator(config, spec) if method.has_generator else None
    iterations = config.epochs * config.steps_per_epoch
    each = iteration_multiply_adds(
        multiply_adds(student),
        num_teachers * multiply_adds(teacher),
        multiply_adds(generator) if generator else 0,
        batch_size=config.batch_size,
        student_steps=config.student_steps,
    )
    messages = iteration_messages(
        student, generator, teacher, config, method, num_teachers
    )
    return Cost(
        config.method,
        iterations * config.student_steps,
        iterations * each / SUSTAINED,
        Messages(*(iterations * one for one in dataclasses.astuple(messages))),
    )


def shown(seconds: float) -> str:
    """In the unit that suits."""
    hours, minutes = seconds / 3600, seconds / 60
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min"


def main() -> None:
    """Prints the table in Markdown."""
    print("| flagfile | what | updates | one GPU | eight | efficiency |")
    print("|---|---|---|---|---|---|")
    for file in sorted((ROOT / "experiments").rglob("*.flags")):
        name = file.relative_to(ROOT / "experiments")
        if file.name == "base.flags":
            continue
        cost = cost_of(str(file.relative_to(ROOT)))
        start = f"| `{name}` | {cost.what} | {cost.updates:,} | {shown(cost.compute)}"
        eight = "| uses one | |"
        if cost.messages:
            share = f"{100 * cost.efficiency:.0f} %"
            eight = f"| {shown(cost.on_eight)} | {share} |"
        print(start, eight)


if __name__ == "__main__":
    main()
