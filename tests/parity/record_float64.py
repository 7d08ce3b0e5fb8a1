"""Records the two parity iterations in double precision, with plain PyTorch.

The published float32 numbers cannot be met beyond the first updates by anything, not
even by the same formulas in PyTorch with another thread count: a rectifier that flips
by rounding sends the trajectories apart (README.md beside this file). In float64
they do not part, so an independent implementation can be compared to the end.

    pip install torch
    python -m tests.parity.record_float64              # writes iteration_*_float64.npz
    python -m tests.parity.record_float64 --dtype=float32 --threads=1   # only compares

Written from the published description, without any code of this package's engine.
"""

import argparse

import numpy as np
import torch

from experiments.benchmarks.pytorch_networks import (
    Generator,
    Iteration,
    Student,
    Teacher,
)
from tests.parity.filling import FOLDER, RECORDED, draw, fill, load

CLASSES, ROUNDS = 10, 5
WIDENS = {"iteration_wrn": (1, 1, 1), "iteration_mixed": (1, 1, 2)}


def teacher(widen):
    """WRN-16-`widen`."""
    return Teacher("wrn", (2, 2, 2), (16, 16 * widen, 32 * widen, 64 * widen), CLASSES)


def filled(network, salt, like, dtype):
    tensors = [
        [name, [CLASSES, *shape[1:]] if shape[0] == 100 else shape]
        for name, shape in RECORDED[like]["tensors"]
    ]
    values = {k: torch.tensor(v) for k, v in fill(salt, tensors).items()}
    missing = network.load_state_dict(values, strict=False)
    assert not missing.unexpected_keys
    assert all("num_batches" in key for key in missing.missing_keys)
    return network.to(dtype)


def iterate(tag, dtype):
    settings, salt = RECORDED[tag], tag.removeprefix("iteration_")
    teachers = [
        filled(teacher(k), f"{salt}/teacher{i}", f"wrn16_{k}", dtype).eval()
        for i, k in enumerate(WIDENS[tag])
    ]
    student = Student("wrn", (2, 2, 2), (16, 16, 32, 64), CLASSES)
    student = filled(student, f"{salt}/student", "mh_wrn16_1", dtype).train()
    generator = filled(Generator(), f"{salt}/generator", "generator_32", dtype).train()
    sgd = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3)
    weights = [settings[f"weight_{term}"] for term in ("feature", "ensemble", "bn")]
    iteration = Iteration(teachers, student, generator, sgd, adam, weights)

    def noise(name):
        return torch.tensor(draw(salt, name, (settings["batch"], 256))).to(dtype)

    rows = []
    for number in range(settings["iterations"]):
        for k in range(ROUNDS):
            terms = iteration.student_round(noise(f"z{number}.{k}"))
            rows.append([term.item() for term in terms])
        terms = iteration.generator_round(noise(f"z{number}.g"))
        rows.append([*(term.item() for term in terms), 0.0])
    student.eval()
    probe = draw(salt, "probe", (8, 32, 32, 3)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = student(torch.tensor(probe).to(dtype))[0].numpy()
    return np.array(rows), logits


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for tag in WIDENS:
        losses, logits = iterate(tag, getattr(torch, arguments.dtype))
        recorded = load(tag)
        theirs = recorded["losses"][:, 2:]
        relative = np.abs(losses - theirs) / np.maximum(np.abs(theirs), 1e-9)
        gap = np.abs(logits - recorded["student_logits_eval"]).max()
        gap /= np.abs(recorded["student_logits_eval"]).max()
        print(tag, "relative to the recorded float32 numbers: worst loss per update")
        print("  ", " ".join(f"{value:.0e}" for value in relative.max(1)))
        print("   final logits", f"{gap:.2f}")
        if arguments.dtype == "float64":
            np.savez_compressed(
                FOLDER / f"{tag}_float64.npz", losses=losses, student_logits_eval=logits
            )


if __name__ == "__main__":
    main()
