"""Peak memory of one iteration, as it is and with --low_memory.

    python experiments/robustness/memory.py

Each row is a process of its own: three untrained teachers, three iterations; of the
third it prints the peak of resident memory above what lay there before, and the
seconds. Linux only.
"""

import argparse
import ctypes
import itertools
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# Name -> data set's image shape, classes, teacher, its width; student; batch.
RUNS = {
    "digits: 3 wrn16_1 to wrn10_1": ((16, 16, 1), 10, "wrn16_1", "wrn10_1", 64),
    "3 wrn40_2 to wrn16_1": ((32, 32, 3), 100, "wrn40_2", "wrn16_1", 16),
    "3 resnet34 to resnet18": ((32, 32, 3), 100, "resnet34", "resnet18", 16),
}


def megabytes(name: str) -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def measure(run: str, low_memory: bool) -> None:
    """Prints megabytes and seconds of one iteration."""
    from cdfkd_tf.quiet import quiet_tensorflow

    quiet_tensorflow()
    from cdfkd_tf.data.latents import latent_dataset
    from cdfkd_tf.methods import METHODS, with_overrides
    from cdfkd_tf.models import build_classifier, build_generator, build_student
    from cdfkd_tf.models.teachers import TeacherEnsemble
    from cdfkd_tf.training.adversarial import AdversarialDistiller
    from cdfkd_tf.training.optimizers import CoupledSGD, PaperAdam

    shape, classes, teacher, student, batch = RUNS[run]
    method = with_overrides(METHODS["cdfkd_mfs"], student_feature=0)
    distiller = AdversarialDistiller(
        build_student(student, shape, classes, 3, sharing="multi_level"),
        TeacherEnsemble([build_classifier(teacher, shape, classes) for _ in range(3)]),
        method,
        build_generator("dafl", shape, 256, standardised=True),
        low_memory=low_memory,
    )
    distiller.compile(CoupledSGD(0.01), PaperAdam(1e-3))
    step = distiller.make_train_function()
    lessons = iter(latent_dataset(batch, 6, 256, seed=0))
    for _ in range(2):
        step(lessons)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = megabytes("VmRSS"), time.monotonic()
    step(lessons)
    seconds = time.monotonic() - start
    print(f"{megabytes('VmHWM') - before:.0f} {seconds:.2f}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=RUNS)
    parser.add_argument("--low_memory", action="store_true")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    arguments = parser.parse_args()
    if arguments.run:
        measure(arguments.run, arguments.low_memory)
        return
    print("| | batch | mode | MB above rest | seconds |\n|---|---|---|---|---|")
    for run, mode in itertools.product(RUNS, ("plain", "--low_memory")):
        if arguments.only not in run:
            continue
        command = [sys.executable, __file__, f"--run={run}"]
        command += [mode] if mode != "plain" else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, seconds = done.stdout.split()[-2:]
        print(f"| {run} | {RUNS[run][-1]} | {mode} | {peak} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
