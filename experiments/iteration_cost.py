"""Multiply-adds of one iteration of distillation, from those of its networks."""


def iteration_multiply_adds(
    student: int, teachers: int, generator: int, *, batch_size: int, student_steps: int
) -> int:
    """Multiply-adds of one iteration: student steps, then the generator's step.

    A backward pass towards weights and inputs counts twice a forward pass, towards
    inputs alone once. A student step: generator and teachers forward, student forward
    and backward. The generator step: generator forward and backward, teachers and
    student forward and backward towards their inputs.

    Args:
        student: of one forward pass for one image, as the next two.
        teachers: of all of them together.
        generator: 0 if the images are real: there is no generator step then.
        batch_size: B.
        student_steps: per iteration.
    """
    total = student_steps * (generator + teachers + 3 * student)
    if generator:
        total += 3 * generator + 2 * teachers + 2 * student
    return batch_size * total
