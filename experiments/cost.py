"""What each shipped flagfile costs on one modern GPU, from counted operations.

python experiments/cost.py

Assumes 40 Tmultiply-adds/s sustained: a quarter of the dense bfloat16 peak of an
NVIDIA A100 (312 TFLOP/s are 156 Tmultiply-adds/s). Float32 through its TF32 units takes
about twice as long.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SUSTAINED = 40e12  # multiply-adds per second
TRAINING_IMAGES = {
    "digits": 1437,
    "mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "caltech101": 6_941,
    "mini_imagenet": 48_000,
}


def cost_of(flagfile: str) -> tuple[str, int, float]:
    """Its action, its student updates (teachers': updates of each) and seconds."""
    from absl import flags as absl_flags

    from cdfkd_tf import flags
    from cdfkd_tf.data.specs import spec_of
    from cdfkd_tf.methods import METHODS
    from cdfkd_tf.models import build_classifier, build_generator, build_student
    from cdfkd_tf.models.counting import iteration_multiply_adds, multiply_adds

    values = absl_flags.FlagValues()
    flags.define(values)
    config = flags.parse(["", f"--flagfile={flagfile}"], values)
    spec = spec_of(config.dataset)
    shape = (spec.image_shape, spec.num_classes)
    network = pathlib.Path(config.teachers[0]).parts[2] if config.teachers else ""
    network = network.removeprefix("teachers_") or config.teacher
    teacher = multiply_adds(
        build_classifier(network, *shape, width=config.teacher_width)
    )
    if config.action == "train_teachers":
        images = TRAINING_IMAGES[config.dataset] * config.teacher_epochs
        total = 3 * teacher * images * config.num_teachers
        return "teachers", images // config.teacher_batch_size, total / SUSTAINED
    method = METHODS[config.method]
    num_teachers = len(config.teachers) or config.num_teachers
    sharing = config.student_headers or method.sharing
    student = build_student(
        config.student,
        *shape,
        1 if sharing == "single" else num_teachers,
        sharing=sharing,
        width=config.student_width,
    )
    generator = 0
    if method.generator:
        generator = multiply_adds(
            build_generator(
                config.generator,
                spec.image_shape,
                config.latent_size,
                standardised=spec.standardised,
                width=config.generator_width,
            )
        )
    iterations = config.epochs * config.steps_per_epoch
    each = iteration_multiply_adds(
        multiply_adds(student),
        num_teachers * teacher,
        generator,
        batch_size=config.batch_size,
        student_rounds=config.student_rounds,
    )
    updates = iterations * config.student_rounds
    return config.method, updates, iterations * each / SUSTAINED


def main() -> None:
    """Prints the table in Markdown."""
    print("| flagfile | what | updates | GPU time |\n|---|---|---|---|")
    for file in sorted((ROOT / "experiments").rglob("*.flags")):
        name = file.relative_to(ROOT / "experiments")
        if file.name == "base.flags":
            continue
        what, updates, seconds = cost_of(str(file.relative_to(ROOT)))
        hours, minutes = seconds / 3600, seconds / 60
        shown = f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min"
        print(f"| `{name}` | {what} | {updates:,} | {shown} |")


if __name__ == "__main__":
    main()
