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

from cdfkd_tf.networks.classifiers import build_classifier
from tests.bad_requests import REQUESTS, Bad
from tests.conftest import TOY, few_digits, run_main, untraced
from tests.data import archives

NOBODY = 65534
ROOM = 15_000  # bytes that a file may have on the full disk
# What a failed step may change: the records, and what it was about to make anew.
OWN = {
    "distill": ("checkpoints", "logs", "samples", "history.csv"),
    "export": ("export",),
}
RECORDS = ("progress.json", "results.json", "config.json", "run.flags")


class Place:
    """A finished run, and files that are wrong in many ways.

    Args:
        folder: everybody may enter it.
        data_dir: with the digits.
    """

    def __init__(self, folder, data_dir):
        self.folder, self.data_dir = folder, data_dir
        folder.chmod(0o755)
        self.run = folder / "a run, ünfinished"  # blanks and letters of all kinds
        assert run_main(*self.flags(self.run)) == 0
        self.names = {"folder": folder, "teacher": folder / "teacher.keras"}
        self._make_teachers()
        self._make_pictures()
        self._make_texts()

    def flags(self, workdir):
        where = (f"--data_dir={self.data_dir}", f"--workdir={workdir}")
        form = "--export_formats=tflite_int8"
        return ("--dataset=digits", *TOY, "--epochs=1", form, *where)

    def _make_teachers(self):
        teacher = self.run / "teachers/teacher_0.keras"
        files = {name: self.folder / f"{name}.keras" for name in (
            "teacher", "empty", "text", "half", "unsafe", "seven", "secret"
        )}  # fmt: skip
        for name in ("teacher", "secret"):
            shutil.copy(teacher, files[name])
        files["secret"].chmod(0)
        files["empty"].touch()
        files["text"].write_text("no model")
        files["half"].write_bytes(teacher.read_bytes()[:10_000])
        build_classifier("wrn10_1", (16, 16, 1), 7, width=0.25).save(files["seven"])
        image = keras.Input((16, 16, 1))
        pooled = keras.layers.GlobalAveragePooling2D()(image)
        doubled = keras.layers.Lambda(lambda x: 2 * x)(pooled)
        model = keras.Model(image, keras.layers.Dense(10)(doubled))
        model.save(files["unsafe"])
        self.names |= files

    def _make_pictures(self):
        pictures = self.folder / "pictures"
        pictures.mkdir()
        Image.new("L", (16, 16)).save(pictures / "ä b.png")
        for name, file in (("hollow", "notes.txt"), ("fake", "a.png")):
            folder = self.folder / name / "train/a"
            folder.mkdir(parents=True)
            (folder / file).write_text("no picture")
        names = ("pictures", "hollow", "fake")
        self.names |= {name: self.folder / name for name in names}

    def _make_texts(self):
        texts = {
            "bad_flags": "--colour=red\n",
            "space_unknown": "colour = red | blue\n",
            "space_odd": "student_rounds between 2 and 5\n",
            "space_range": "student_rounds = 0..5\n",
        }
        for name, text in texts.items():
            self.names[name] = self.folder / f"{name}.txt"
            self.names[name].write_text(text)
        self.names["closed"] = self.folder / "closed"
        self.names["closed"].mkdir(mode=0o555)
        broken = self.names["broken_data"] = self.folder / "broken"
        archives.place(broken, archives.CIFAR_URL.format(10), b"no archive")


def make(place: Place, bad: Bad):
    """Makes one wrong request.

    Returns:
        Exit code; what was said on standard error; files before and after.
    """
    workdir = place.folder / "mine"
    if bad.spoil or not bad.fresh:
        shutil.copytree(place.run, workdir, symlinks=True)
    elif bad.how == "unprivileged":
        workdir.mkdir()
    try:
        return answered(place, bad, workdir)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def answered(place, bad, workdir):
    """See `make`; `workdir` is there if it is to be."""
    if bad.how == "unprivileged" and os.geteuid() == 0:
        for path in (workdir, *workdir.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    if bad.spoil:
        bad.spoil(workdir)
    before, said = snapshot(workdir), io.StringIO()
    how = {"": contextlib.nullcontext, "unprivileged": unprivileged, "full": full}
    with contextlib.redirect_stderr(said), how[bad.how]():
        more = shlex.split(bad.flags.format(**place.names))
        code = run_main(*place.flags(workdir), *more)
    after = snapshot(workdir)
    new = [name for name in after if before.get(name) != after[name]]
    halves = [name for name in new if not is_whole(workdir / name)]
    text = said.getvalue().replace(str(workdir), "runs/mine")
    for known, shown in ((place.folder, "files"), (place.data_dir, "data")):
        text = text.replace(str(known), shown)
    return code, text, before, after, halves


def snapshot(folder):
    """Path -> digest of everything below `folder`, if it is there."""
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
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


@pytest.fixture(scope="module")
def place(data_dir, all_eagerly):
    with tempfile.TemporaryDirectory() as folder:  # pytest's admit their owner only
        yield Place(pathlib.Path(folder), data_dir)


@pytest.mark.parametrize("bad", REQUESTS, ids=lambda bad: bad.what)
def test_a_wrong_request_is_one_line_and_loses_nothing(bad, place):
    code, said, before, after, halves = make(place, bad)
    errors = [line for line in said.splitlines() if not line.startswith("warning:")]
    assert code == bad.code, said
    assert len(errors) == 1 and errors[0].startswith("error: "), said
    assert "Traceback" not in said and bad.words in errors[0], said
    if code == 2:
        assert after == before
        return
    (step,) = (name for name in OWN if f"--action={name}" in bad.flags)
    own = (*OWN[step], *RECORDS)
    kept = {file: value for file, value in before.items() if not file.startswith(own)}
    assert {file: after.get(file) for file in kept} == kept
    assert halves == []
    assert not any(file.startswith("export/") for file in after if file not in before)


def test_there_are_at_least_forty_over_every_action():
    from cdfkd_tf.options import ACTIONS

    assert len(REQUESTS) >= 40
    for action in ACTIONS:
        assert action == "pipeline" or any(f"={action}" in b.flags for b in REQUESTS)
    assert any("--action" not in bad.flags for bad in REQUESTS)  # the pipeline


def main():
    with contextlib.ExitStack() as stack:
        folders = [
            pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for _ in range(2)
        ]
        stack.enter_context(untraced())
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        place = Place(folders[0], few_digits(folders[1]))
        rows = [(bad, *make(place, bad)[:2]) for bad in REQUESTS]
    print("| what is wrong | exit code | what is said |\n|---|---|---|")
    for bad, code, said in rows:
        (line, *_) = (line for line in said.splitlines() if line.startswith("error:"))
        message = line.removeprefix("error: ").replace("|", "\\|")
        print(f"| {bad.what} | {code} | {message} |")


if __name__ == "__main__":
    main()
