"""Every wrong request: exit code, one line, nothing lost, nothing half written.

`python -m tests.test_bad_requests` prints a table of all messages.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import resource
import shlex
import shutil
import sys
import tempfile
import zipfile

import keras
import pytest
from PIL import Image

from cdfkd_tf.errors import RequestError
from cdfkd_tf.workdir import Workdir
from tests import toys
from tests.bad_requests import MADE, PARSED, Bad
from tests.data import archives

NOBODY = 65534
ROOM = 3_000  # bytes that a file may have on the full disk
# What a failed step may change: the records, and what it was about to make anew.
OWN = {
    "distill": ("checkpoints", "logs", "samples", "history.csv"),
    "export": ("export",),
}
RECORDS = ("progress.json", "results.json", "config.json", "run.flags")


class Place:
    """A finished run, and files that are wrong in many ways.

    Args:
        folder: all users may enter it.
        files: of the finished run.
        run: its workdir.
    """

    def __init__(self, folder: pathlib.Path, files: toys.Files, run: pathlib.Path):
        self.folder, self.files, self.run = folder, files, run
        folder.chmod(0o755)
        self.names = {"folder": folder, "teacher": files.teachers[0]}
        self._make_teachers()
        self._make_pictures()
        self._make_texts()

    def flags(self, base: str, workdir: pathlib.Path) -> tuple[str, ...]:
        own = getattr(self.files, base) if base else ()
        if base == "with_data":
            own = (*own, "--aggregator=attention", "--labelled_samples=8")
        return (*own, f"--workdir={workdir}")

    def _make_teachers(self):
        teacher = self.files.teachers[0]
        models = {
            "seven": toys.classifier(classes=7),
            "two_channels": toys.classifier((8, 8, 2)),
            "without_bn": toys.classifier(norm=keras.layers.LayerNormalization),
            "wide": toys.probabilities_of_bytes(),
        }
        image = keras.Input(toys.SHAPE)
        pooled = keras.layers.GlobalAveragePooling2D()(image)
        doubled = keras.layers.Lambda(lambda x: 2 * x)(pooled)
        unsafe = keras.layers.Dense(toys.CLASSES)(doubled)
        models["unsafe"] = keras.Model(image, unsafe)
        files = {
            name: self.folder / f"{name}.keras"
            for name in (*models, "empty", "text", "half", "secret")
        }
        for name, model in models.items():
            model.save(files[name])
        shutil.copy(teacher, files["secret"])
        files["secret"].chmod(0)
        files["empty"].touch()
        files["text"].write_text("no model")
        files["half"].write_bytes(teacher.read_bytes()[:10_000])
        self.names |= files

    def _make_pictures(self):
        pictures = self.folder / "pictures"
        pictures.mkdir()
        Image.new("L", (8, 8)).save(pictures / "ä b.png")
        for name, file in (("hollow", "notes.txt"), ("fake", "a.png")):
            folder = self.folder / name / "train/a"
            folder.mkdir(parents=True)
            (folder / file).write_text("no picture")
        for name in "bcd":  # as many classes as the teachers know
            (self.folder / f"fake/train/{name}").mkdir()
            Image.new("L", (8, 8)).save(self.folder / f"fake/train/{name}/a.png")
        names = ("pictures", "hollow", "fake")
        self.names |= {name: self.folder / name for name in names}

    def _make_texts(self):
        texts = {
            "bad_flags": "--colour=red\n",
            "space_unknown": "colour = red | blue\n",
            "space_odd": "student_steps between 2 and 5\n",
            "space_range": "student_steps = 0..5\n",
        }
        for name, text in texts.items():
            self.names[name] = self.folder / f"{name}.txt"
            self.names[name].write_text(text)
        self.names["closed"] = self.folder / "closed"
        self.names["closed"].mkdir(mode=0o555)
        broken = self.names["broken_data"] = self.folder / "broken"
        archives.place(broken, archives.CIFAR_URL.format(10), b"no archive")

    def shown(self, text: str, workdir: pathlib.Path) -> str:
        """A message without this machine's folders."""
        known = {workdir: "runs/mine", self.folder: "files", self.files.folder: "toy"}
        for folder, name in known.items():
            text = text.replace(str(folder), name)
        return text


def refusal(place: Place, bad: Bad) -> str:
    """The message of a request that is refused while it is read."""
    try:
        toys.parse(*shlex.split(bad.flags.format(**place.names)))
    except RequestError as error:
        return str(error)
    return "was not refused"


def make(place: Place, bad: Bad):
    """Makes one wrong request.

    Returns:
        Exit code; standard error; files before and after; files that are not whole.
    """
    workdir = place.folder / "a run, ünfinished"  # blanks and letters of all kinds
    if bad.spoil or not bad.fresh:
        shutil.copytree(place.run, workdir, symlinks=True)
    elif bad.how == "unprivileged":
        workdir.mkdir()
    try:
        return outcome(place, bad, workdir)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def outcome(place, bad, workdir):
    """See `make`; `workdir` is there if it is to be."""
    if bad.how == "unprivileged" and os.geteuid() == 0:
        for path in (workdir, *workdir.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    if bad.spoil:
        bad.spoil(workdir)
    before, printed = snapshot(workdir), io.StringIO()
    how = {
        "": contextlib.nullcontext,
        "unprivileged": unprivileged,
        "full": full,
        "taken": Workdir(workdir).locked,
    }
    with contextlib.redirect_stderr(printed), how[bad.how]():
        more = shlex.split(bad.flags.format(**place.names))
        code = toys.run_main(*place.flags(bad.base, workdir), *more)
    after = snapshot(workdir)
    new = [name for name in after if before.get(name) != after[name]]
    halves = [name for name in new if not is_whole(workdir / name)]
    return code, place.shown(printed.getvalue(), workdir), before, after, halves


def snapshot(folder):
    """Path -> digest of every file below `folder` but its lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def is_whole(file):
    """Whether a file can be what its name says."""
    if file.suffix == ".keras":
        return zipfile.is_zipfile(file)
    if file.suffix == ".json":
        return isinstance(json.loads(file.read_text()), dict)
    if file.suffix == ".tflite":
        return file.read_bytes()[4:8] == b"TFL3" and zipfile.is_zipfile(file)
    return not file.name.endswith((".png", ".html")) or file.stat().st_size > 0


@contextlib.contextmanager
def unprivileged():
    """Without the administrator's rights, whom no permission stops."""
    if os.geteuid():
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def full():
    """As on a full disk: no file grows beyond `ROOM`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def entered(folder):
    """All users may enter a folder, where pytest's admit their owner only."""
    own = [path for path in folder.parents if path.stat().st_uid == os.geteuid()]
    modes = {path: path.stat().st_mode for path in (folder, *own)}
    for path, mode in modes.items():
        path.chmod(mode | 0o011)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture(scope="module")
def place(toy_files, finished):
    with tempfile.TemporaryDirectory() as folder, entered(toy_files.folder):
        yield Place(pathlib.Path(folder), toy_files, finished)


def test_parse_refuses_every_request_that_needs_no_files(place):
    for bad in PARSED:
        message = refusal(place, bad)
        assert bad.words in message, (bad.what, message)
        assert "\n" not in message and message.endswith("."), message


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, marks=() if bad.quick else pytest.mark.slow, id=bad.what)
        for bad in MADE
    ],
)
def test_wrong_request_is_one_line_and_loses_nothing(bad, place):
    code, printed, before, after, halves = make(place, bad)
    errors = [line for line in printed.splitlines() if not line.startswith("warning:")]
    assert code == bad.code, printed
    assert len(errors) == 1 and errors[0].startswith("error: "), printed
    assert "Traceback" not in printed and bad.words in errors[0], printed
    if code == 2:
        assert after == before
        return
    (step,) = (name for name in OWN if f"--action={name}" in bad.flags)
    own = (*OWN[step], *RECORDS)
    kept = {file: value for file, value in before.items() if not file.startswith(own)}
    assert {file: after.get(file) for file in kept} == kept
    assert halves == []
    assert not any(file.startswith("export/") for file in after if file not in before)


def main():
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory
        folders = [pathlib.Path(stack.enter_context(temporary())) for _ in "abc"]
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(entered(folders[1]))
        files, workdir = toys.Files(folders[1]), folders[2] / "run"
        files.make()
        more = ("--aggregator=attention", "--labelled_samples=8", "--report")
        assert toys.run_main(*files.with_data, *more, f"--workdir={workdir}") == 0
        place = Place(folders[0], files, workdir)
        rows = [(bad, 2, f"error: {refusal(place, bad)}") for bad in PARSED]
        rows += [(bad, *make(place, bad)[:2]) for bad in MADE]
    print("| what is wrong | exit code | what is said |\n|---|---|---|")
    for bad, code, printed in rows:
        errors = [line for line in printed.splitlines() if line[:6] == "error:"]
        (line, *_) = errors or ["was not refused"]
        message = line.removeprefix("error: ").replace("|", "\\|")
        print(f"| {bad.what} | {code} | {message} |")


if __name__ == "__main__":
    main()
