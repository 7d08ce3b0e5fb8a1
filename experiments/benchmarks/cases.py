"""What is timed: networks, sizes, batches."""

import dataclasses
import pathlib
import resource


@dataclasses.dataclass(frozen=True)
class Case:
    """One iteration to time: several teachers into one student.

    Attributes:
        teacher: architecture of the teachers.
        options: of the run, as `RunConfig` has them.
        num_teachers: T.
        torch_teacher: family, blocks per stage, channels of stem and stages.
        torch_student: the same.
        generator_widths: channels of the generator's three maps.
    """

    teacher: str
    options: dict
    torch_teacher: tuple
    torch_student: tuple
    generator_widths: tuple[int, int, int] = (128, 128, 64)
    feature_weight: float = 0.0
    image: tuple[int, int, int] = (32, 32, 3)
    classes: int = 100
    batch_size: int = 16
    latent_size: int = 256
    student_steps: int = 5
    num_teachers: int = 3


CASES = {
    "digits": Case(
        teacher="wrn16_1",
        options={
            "student": "wrn10_1",
            "student_width": 0.5,
            "generator_width": 0.5,
        },
        torch_teacher=("wrn", (2, 2, 2), (16, 16, 32, 64)),
        torch_student=("wrn", (1, 1, 1), (8, 8, 16, 32)),
        generator_widths=(64, 64, 32),
        image=(16, 16, 1),
        classes=10,
        batch_size=64,
        latent_size=64,
    ),
    "wrn": Case(
        teacher="wrn40_2",
        options={"student": "wrn16_1"},
        torch_teacher=("wrn", (6, 6, 6), (16, 32, 64, 128)),
        torch_student=("wrn", (2, 2, 2), (16, 16, 32, 64)),
    ),
    "resnet": Case(
        teacher="resnet34",
        options={"student": "resnet18"},
        torch_teacher=("resnet", (3, 4, 6, 3), (64, 64, 128, 256, 512)),
        torch_student=("resnet", (2, 2, 2, 2), (64, 64, 128, 256, 512)),
        feature_weight=0.2,
        batch_size=8,
    ),
}


def changed(case: Case, *, side: int | None = None, **fields: int | None) -> Case:
    """`case` with square images of `side` pixels and other fields, Nones left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    if side is not None:
        given["image"] = (side, side, case.image[2])
    return dataclasses.replace(case, **given)


def gigaflop(case: Case, *, one_header: bool = False) -> float:
    """Counted floating-point operations of one iteration, in 1e9.

    Args:
        case: that is timed.
        one_header: as methods have it whose student learns from the teachers' mean.
    """
    from cdfkd_tf.networks.classifiers import build_classifier
    from cdfkd_tf.networks.generators import build_generator
    from cdfkd_tf.networks.introspection import multiply_adds
    from cdfkd_tf.networks.students import build_student
    from experiments.iteration_cost import iteration_multiply_adds

    teacher = build_classifier(case.teacher, case.image, case.classes)
    student = build_student(
        case.options["student"],
        case.image,
        case.classes,
        1 if one_header else case.num_teachers,
        sharing="single" if one_header else "multi_level",
        width=case.options.get("student_width", 1.0),
    )
    generator = build_generator(
        "dafl",
        case.image,
        case.latent_size,
        standardised=True,
        width=case.options.get("generator_width", 1.0),
    )
    counted = iteration_multiply_adds(
        multiply_adds(student),
        case.num_teachers * multiply_adds(teacher),
        multiply_adds(generator),
        batch_size=case.batch_size,
        student_steps=case.student_steps,
    )
    return 2 * counted / 1e9


def peak_megabytes() -> float:
    """The most memory this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_megabytes() -> float:
    """What this process holds now. Linux."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
