"""Times the plain PyTorch iteration of one case; prints a line of JSON.

    python -m experiments.benchmarks.pytorch_loop --case=wrn --policy=float32

A process of its own, so that its memory is its own. `--policy=mixed_bfloat16` runs the
networks under `torch.autocast`; `--compile` lays maps out channels last and compiles
both losses with `torch.compile`, which needs a C++ compiler.
"""

import argparse
import contextlib
import json
import time

import torch

from experiments.benchmarks.cases import CASES, peak_megabytes, resident_megabytes
from experiments.benchmarks.pytorch_networks import (
    Generator,
    Iteration,
    Student,
    Teacher,
)


def build(case, compiled):
    """The iteration that `case` describes, random weights."""
    shape = (case.classes, case.image[2])
    teachers = [Teacher(*case.torch_teacher, *shape).eval() for _ in range(3)]
    for teacher in teachers:
        teacher.requires_grad_(False)
    student = Student(*case.torch_student, *shape).train()
    size = case.image[0]
    widths = case.generator_widths
    generator = Generator(size, case.image[2], widths, case.latent_size).train()
    sgd = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3)
    weights = (case.feature_weight, 5.0, 0.1)
    iteration = Iteration(teachers, student, generator, sgd, adam, weights)
    if compiled:
        for network in (*teachers, student, generator):
            network.to(memory_format=torch.channels_last)
        for name in ("student_terms", "generator_terms"):
            setattr(iteration, name, torch.compile(getattr(iteration, name)))
    return iteration


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--policy", default="float32")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    torch.manual_seed(0)
    imported = resident_megabytes()
    started = time.monotonic()
    iteration = build(case, arguments.compile)
    half = contextlib.nullcontext()
    if arguments.policy == "mixed_bfloat16":
        half = torch.autocast("cpu", dtype=torch.bfloat16)
    seconds = []
    for _ in range(arguments.iterations + 1):
        before = time.perf_counter()
        noise = torch.randn(case.student_steps + 1, case.batch_size, case.latent_size)
        with half:
            for k in range(case.student_steps):
                iteration.student_round(noise[k])
            iteration.generator_round(noise[-1])
        seconds.append(time.perf_counter() - before)
        if len(seconds) == 1:
            first_step = time.monotonic() - started
    print(
        json.dumps(
            {
                "seconds": seconds[1:],
                "first_step": first_step,
                "imported_megabytes": imported,
                "peak_megabytes": peak_megabytes(),
            }
        )
    )


if __name__ == "__main__":
    main()
