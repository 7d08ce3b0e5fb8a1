"""Kills one run again and again, lets it go on, and compares with an undisturbed one.

    python experiments/robustness/kills.py

Each kill is `kill -9` at a moment drawn from `--seed`: while Python or TensorFlow
starts, while a teacher trains, between two steps or within one, while a checkpoint is
written, after the distillation. The same command is started again after each.
"""

import argparse
import collections
import csv
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
# A small run: two minutes on one CPU core, undisturbed.
FLAGS = (
    "--dataset=digits",
    "--seed=0",
    "--deterministic=true",
    "--teacher_network=wrn10_1",
    "--num_teachers=2",
    "--teacher_epochs=6",
    "--teacher_batch_size=64",
    "--teacher_milestones=4",
    "--student=wrn10_1",
    "--student_width=0.5",
    "--student_loss=feature=0",
    "--generator_width=0.25",
    "--latent_size=32",
    "--student_steps=3",
    "--epochs=100",
    "--steps_per_epoch=5",
    "--batch_size=32",
    "--student_learning_rate=0.05",
    "--generator_learning_rate=0.005",
    "--milestones=60,90",
    "--keep_best",
    "--aggregator=attention",
    "--labelled_samples=50",
    "--aggregator_epochs=20",
    "--export_formats=",
    "--noreport",
)
NETWORKS = ("student", "generator", "aggregator", "predictor")
# Lines that a process has printed by then -> how many seconds later it may be killed.
MOMENTS = {
    "start": ((), 6.0),
    "teachers": (("-- train teachers",), 12.0),
    "tracing": (("-- distill",), 6.0),
    "training": (("-- distill", "Epoch", "Epoch"), 3.0),
    "writing": (("-- distill", "Epoch", "Epoch"), 2.0),  # then at the next checkpoint
    "afterwards": (("-- fit aggregator",), 4.0),
}
PLAN = {
    "start": 2,
    "teachers": 2,
    "tracing": 2,
    "training": 6,
    "writing": 6,
    "afterwards": 2,
}
_LIMIT = 900  # seconds until a process that does not end is an error


@dataclasses.dataclass
class Kill:
    """One kill, and what was seen of it."""

    moment: str
    seconds: float  # after the moment's words
    lived: float = 0.0
    wrote: bool = False  # a checkpoint lay there half written
    went_on: str = ""  # where the next process continues, as it prints it


class Process:
    """One process of the run; its output is read as it comes."""

    def __init__(self, command: list[str]):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.lines, self.started = [], time.monotonic()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(line.rstrip())

    def has_said(self, beginnings: tuple[str, ...]) -> bool:
        """Whether lines began so, one after the other."""
        lines = iter(list(self.lines))
        return all(any(line.startswith(b) for line in lines) for b in beginnings)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self._process.wait(_LIMIT)
        self._reader.join()
        return code


def command_of(flags: list[str], workdir: pathlib.Path) -> list[str]:
    main = [sys.executable, str(ROOT / "main.py"), *flags]
    return [*main, f"--workdir={workdir}"]


def run_whole(flags: list[str], workdir: pathlib.Path) -> Process:
    """The run, undisturbed unless it was killed before.

    Raises:
        SystemExit: it did not end well.
    """
    process = Process(command_of(flags, workdir))
    if process.wait():
        sys.exit("\n".join(process.lines[-20:]))
    return process


def run_and_kill(flags: list[str], workdir: pathlib.Path, kill: Kill) -> Process:
    """Starts the run and kills it at its moment; fills in what was seen.

    Raises:
        SystemExit: it ended before.
    """
    words, _ = MOMENTS[kill.moment]
    process, due = Process(command_of(flags, workdir)), None
    while process.is_running():
        now = time.monotonic()
        if due is None and process.has_said(words):
            due = now + kill.seconds
        ready = due is not None and now >= due
        if ready and (kill.moment != "writing" or half_written(workdir)):
            break
        time.sleep(0.0002)
    else:
        sys.exit(f"It ended before {kill}:\n" + "\n".join(process.lines[-20:]))
    process.kill()
    kill.lived = time.monotonic() - process.started
    kill.wrote = half_written(workdir)
    return process


def half_written(workdir: pathlib.Path) -> bool:
    """Whether files of a checkpoint are there that does not count yet."""
    folder = workdir / "checkpoints"
    try:
        names = {name for name in os.listdir(folder) if "ckpt-" in name}
    except FileNotFoundError:
        return False
    stems = {name.removeprefix(".").split(".")[0] for name in names}
    return any(f"{stem}.json" not in names for stem in stems)


def went_on(process: Process) -> str:
    found = [line for line in process.lines if line.startswith("Going on after")]
    return re.sub(r"Going on after | of \d+\.", "", found[0]) if found else "the start"


def planned(plan: dict[str, int], seed: int) -> list[Kill]:
    """Kills in the order of a run's life, those within the distillation mixed."""
    draw = random.Random(seed)
    moments = [moment for moment, count in plan.items() for _ in range(count)]
    early = [m for m in moments if m in ("start", "teachers")]
    late = [m for m in moments if m == "afterwards"]
    middle = [m for m in moments if m not in (*early, *late)]
    draw.shuffle(early)
    draw.shuffle(middle)
    ordered = [*early, *middle, *late]
    return [Kill(m, draw.uniform(0, MOMENTS[m][1])) for m in ordered]


def disturb(flags: list[str], workdir: pathlib.Path, kills: list[Kill]) -> None:
    """Runs, kills, resumes as often as there are kills, and then to the end."""
    for number, kill in enumerate(kills):
        process = run_and_kill(flags, workdir, kill)
        if number:
            kills[number - 1].went_on = went_on(process)
        print(f"kill {number + 1}: {kill}", flush=True)
    kills[-1].went_on = went_on(run_whole(flags, workdir))


def differences(one: pathlib.Path, other: pathlib.Path) -> dict[str, float]:
    """Largest difference of any weight, network by network."""
    import keras
    import numpy as np

    found = {}
    for name in NETWORKS:
        files = [folder / f"{name}.keras" for folder in (one, other)]
        if files[0].exists():
            ours, theirs = (keras.saving.load_model(f).get_weights() for f in files)
            pairs = zip(ours, theirs, strict=True)
            found[name] = max([float(np.abs(a - b).max()) for a, b in pairs], default=0)
    return found


def same_history(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether both tables of epochs hold the same rows."""
    tables = [list(csv.reader((f / "history.csv").open())) for f in (one, other)]
    return tables[0] == tables[1]


def table(kills: list[Kill]) -> str:
    """One row per kill, for people."""
    lines = [
        "| | killed | seconds after it began | after | next process goes on after |",
        "|---|---|---|---|---|",
    ]
    for number, kill in enumerate(kills, 1):
        half = ", a checkpoint half written" if kill.wrote else ""
        lines.append(
            f"| {number} | {kill.moment}{half} | {kill.lived:.1f} | "
            f"{kill.seconds:.2f} s | {kill.went_on} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="flags for every run, behind --")
    arguments = parser.parse_args()
    folder, flags = pathlib.Path(arguments.folder), [*FLAGS, *arguments.more]
    shutil.rmtree(folder / "killed", ignore_errors=True)
    kills = planned(PLAN, arguments.seed)
    start = time.monotonic()
    run_whole(flags, folder / "whole")
    print(f"Undisturbed: {time.monotonic() - start:.0f} s", flush=True)
    disturb(flags, folder / "killed", kills)
    print(table(kills))
    counts = collections.Counter(kill.moment for kill in kills)
    print(f"\n{len(kills)} kills, {len(kills)} resumes: {dict(counts)}")
    for name, value in differences(folder / "whole", folder / "killed").items():
        print(f"largest difference of {name}: {value:g}")
    same = same_history(folder / "whole", folder / "killed")
    print(f"history.csv the same: {same}")


if __name__ == "__main__":
    main()
