"""Wrong requests, over every action: what is wrong, the flags, words of the message.

`tests/test_bad_requests.py` makes each of them; `python -m tests.test_bad_requests`
prints what is said. Names in braces stand for files of the tests' place.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Bad:
    """One wrong request.

    Attributes:
        what: is wrong, in words.
        flags: of the command line.
        words: that the message must hold.
        code: its exit code.
        spoil: changes a copy of the finished workdir first; it gets the copy.
        fresh: in a workdir that is not there yet, else in the finished one.
        how: `unprivileged`: as a user without rights; `full`: no file may grow beyond
            some bytes.
    """

    what: str
    flags: str
    words: str
    code: int = 2
    spoil: Callable[[pathlib.Path], None] | None = None
    fresh: bool = True
    how: str = ""


def cut(name: str) -> Callable[[pathlib.Path], None]:
    """Half of the file is lost; of every checkpoint in a folder."""

    def spoil(run):
        chosen = run / name
        files = [chosen] if chosen.is_file() else chosen.glob("ckpt-*.data*")
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def write(name: str, text: str) -> Callable[[pathlib.Path], None]:
    """The file holds this text instead."""
    return lambda run: (run / name).write_text(text)


def begun_with(**options) -> Callable[[pathlib.Path], None]:
    """The workdir's record says that distilling began with these options."""

    def spoil(run):
        progress = json.loads((run / "progress.json").read_text())
        progress["distill"]["options"] |= options
        progress["distill"]["done"] = False
        (run / "progress.json").write_text(json.dumps(progress))

    return spoil


def taken(run: pathlib.Path) -> None:
    """Another process, which is alive, holds the workdir."""
    import socket

    started = pathlib.Path("/proc/1/stat").read_text().rsplit(")")[-1].split()[19]
    holder = {"pid": 1, "host": socket.gethostname(), "started": started}
    (run / ".lock").write_text(json.dumps(holder))


def lacking(key: str) -> Callable[[pathlib.Path], None]:
    """results.json without one of its keys."""

    def spoil(run):
        results = json.loads((run / "results.json").read_text())
        del results[key]
        (run / "results.json").write_text(json.dumps(results))

    return spoil


def file_for_folder(name: str) -> Callable[[pathlib.Path], None]:
    """A file lies where a folder is to be."""

    def spoil(run):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("a file")

    return spoil


def closed(name: str) -> Callable[[pathlib.Path], None]:
    """Nobody may write there."""

    def spoil(run):
        if os.geteuid() == 0:
            os.chown(run / name, 0, 0)
        (run / name).chmod(0o555)

    return spoil


GIVEN = "--action=distill --teachers={teacher}"
NONE = "--dataset=none --image_shape=16,16,1"
PREDICT = "--action=predict --predict_input={pictures}"
SEARCH = "--action=search --teachers={teacher}"
DAMAGED = {"fresh": False}

FLAGS = [
    Bad("unknown flag", "--colour=red", "Unknown command line flag"),
    Bad("a flag misspelled", "--epoch=3", "epochs"),
    Bad("a word for a number", "--epochs=ten", "epochs"),
    Bad("a number below its range", "--epochs=0", "at least 1; got 0"),
    Bad("negative seed", "--seed=-1", "--seed must be at least 0"),
    Bad("batch of one", "--batch_size=1", "--batch_size must be at least 2"),
    Bad("learning rate 0", "--student_learning_rate=0", "must be positive"),
    Bad("no number", "--student_learning_rate=nan", "a finite number; got nan"),
    Bad("infinite weight", "--generator_bn_weight=inf", "a finite number; got inf"),
    Bad("negative clipping", "--clip_gradients=-1", "--clip_gradients must be at"),
    Bad("beta of 1", "--generator_beta1=1", "must be in [0, 1)"),
    Bad("words in a list of numbers", "--milestones=1,last", "whole numbers"),
    Bad("unknown format", "--export_formats=onnx", "--export_formats knows"),
    Bad("unknown action", "--action=destill", "distill"),
    Bad("unknown method", "--method=mfs", "cdfkd_mfs"),
    Bad("unknown data set", "--dataset=svhn", "digits"),
    Bad("unknown arithmetic", "--dtype_policy=float16", "mixed_float16"),
    Bad("an argument without --", "distill", "Options start with --"),
    Bad("no such flagfile", "--flagfile=absent.flags", "absent.flags"),
    Bad("unknown flag in a flagfile", "--flagfile={bad_flags}", "'colour'"),
]
COMBINATIONS = [
    Bad("no data, no size", f"{GIVEN} --dataset=none", "needs --image_shape"),
    Bad("no data, no teachers", f"--action=distill {NONE}", "Name them with"),
    Bad("samples of no data", f"{GIVEN} {NONE} --real_samples=9", "no real images"),
    Bad("one sample to learn from", f"{GIVEN} --real_samples=1", "at least 2"),
    Bad("kd without data", f"{GIVEN} {NONE} --method=kd", "learns from real images"),
    Bad("kd with a generator's term", f"{GIVEN} --method=kd --generator_bn_weight=1",
        "no generator"),
    Bad("nothing to learn",
        f"{GIVEN} --student_header_weight=0 --student_ensemble_weight=0",
        "all its weights are 0"),
    Bad("temperature without softmax", f"{GIVEN} --temperature=4", "Leave it out"),
    Bad("class count twice", f"{GIVEN} --num_classes=10", "--num_classes belongs"),
    Bad("size twice", f"{GIVEN} --image_shape=8,8,1", "--image_shape belongs"),
    Bad("size of two numbers", f"{GIVEN} --dataset=none --image_shape=8,8",
        "height,width,channels"),
    Bad("size the generator cannot make", f"{GIVEN} --dataset=none "
        "--image_shape=9,8,1", "multiples of 4"),
    Bad("replicas on one device", f"{GIVEN} --strategy=mirrored",
        "at least two devices"),
    Bad("two teachers, one header", "--action=distill --teachers={teacher},{teacher} "
        "--student_headers=single", "one header per teacher"),
]  # fmt: skip
TEACHERS = [
    Bad("unknown network", "--action=train_teachers --teacher=vgg", "vgg"),
    Bad("data set not there", "--action=train_teachers --dataset=mini_imagenet",
        "downloads/manual/mini_imagenet"),
    Bad("broken archive", "--action=train_teachers --dataset=cifar10 "
        "--data_dir={broken_data}", "Remove the broken file"),
    Bad("folder of images absent", f"{GIVEN} --dataset=folder --image_folder=absent",
        "no folder 'absent'"),
    Bad("a class without images", f"{GIVEN} --dataset=folder "
        "--image_folder={hollow}", "holds no image"),
    Bad("a file that is no image", f"{GIVEN} --dataset=folder "
        "--image_folder={fake}",
        "is no image that can be read"),
    Bad("teacher absent", "--action=distill --teachers=absent.keras",
        "no teacher file absent.keras"),
    Bad("teacher empty", "--action=distill --teachers={empty}", "is empty"),
    Bad("teacher is text", "--action=distill --teachers={text}", "Cannot read teacher"),
    Bad("half a teacher", "--action=distill --teachers={half}", "Cannot read teacher"),
    Bad("teacher with a Lambda", "--action=distill --teachers={unsafe}",
        "Cannot read teacher"),
    Bad("folder that is no SavedModel", "--action=distill --teachers={pictures}",
        "saved_model.pb"),
    Bad("teacher of other classes", "--action=distill --teachers={seven}",
        "7 classes"),
    Bad("teacher one may not read", "--action=distill --teachers={secret}",
        "secret.keras", how="unprivileged"),
    Bad("unknown student", f"{GIVEN} --student=vgg", "Unknown network 'vgg'"),
    Bad("unknown layer to tap", f"{GIVEN} --student_width=1 "
        "--student={seven} --student_taps=absent",
        "absent"),
]  # fmt: skip
WORKDIRS = [
    Bad("workdir is a file", f"{GIVEN} --workdir={{text}}", "text.keras"),
    Bad("workdir where one may not write", f"{GIVEN} --workdir={{closed}}/run",
        "Permission denied", how="unprivileged"),
    Bad("workdir of other options", "--action=distill --student_rounds=3",
        "--student_rounds=2; now it is --student_rounds=3", **DAMAGED),
    Bad("the same, again from the start but wrong", "--action=distill --noresume "
        "--student=vgg", "Unknown network 'vgg'", **DAMAGED),
    Bad("teachers again from absent data", "--action=train_teachers --noresume "
        "--data_dir={broken_data} --dataset=cifar10", "Remove the broken", **DAMAGED),
    Bad("workdir in use", "--action=distill", "in use by process 1", spoil=taken),
    Bad("results.json cut", "", "results.json is not as", spoil=cut("results.json")),
    Bad("results.json a list", "", "a list, not a table",
        spoil=write("results.json", "[]")),
    Bad("results.json without teachers", "", "'teachers' is missing",
        spoil=lacking("teachers")),
    Bad("progress.json overwritten", "", "progress.json is not as",
        spoil=write("progress.json", "done")),
    Bad("half a checkpoint", "--action=distill", "Cannot resume from", 1,
        spoil=lambda run: (begun_with()(run), cut("checkpoints")(run))),
    Bad("checkpoint of another architecture", "--action=distill --student_width=0.5",
        "Cannot resume from", 1, spoil=begun_with(student_width=0.5)),
]  # fmt: skip
LATER = [
    Bad("no student yet", "--action=fit_aggregator", "Run --action=distill first"),
    Bad("more samples than there are", "--action=fit_aggregator "
        "--aggregator=attention --real_samples=5000", "has only", **DAMAGED),
    Bad("half a student", "--action=fit_aggregator", "Remove it and run",
        spoil=cut("student.keras")),
    Bad("nothing to measure yet", "--action=evaluate", "Run --action=distill first"),
    Bad("half a predictor", "--action=evaluate", "run --action=fit_aggregator",
        spoil=cut("predictor.keras")),
    Bad("nothing to export yet", "--action=export", "Run --action=fit_aggregator"),
    Bad("a file where export/ is to be", "--action=export", "export",
        spoil=file_for_folder("export")),
    Bad("export where one may not write", "--action=export --evaluation_split=none",
        "Permission denied",
        spoil=closed("export"), how="unprivileged"),
    Bad("no room for the export", "--action=export --export_formats=tflite_float32",
        "Make room", 1, how="full", **DAMAGED),
    Bad("no room for a checkpoint", "--action=distill --noresume", "Make room",
        1, how="full", **DAMAGED),
    Bad("nothing to report", "--action=report", "holds no results.json"),
    Bad("report of a damaged run", "--action=report", "results.json is not as",
        spoil=write("results.json", '{"format": 1}')),
]  # fmt: skip
PREDICTIONS = [
    Bad("nothing to classify", "--action=predict", "needs --predict_input", **DAMAGED),
    Bad("pictures absent", "--action=predict --predict_input=/absent", "There is no",
        **DAMAGED),
    Bad("no picture in the folder", "--action=predict --predict_input={hollow}",
        "holds no image file", **DAMAGED),
    Bad("a picture that is none", "--action=predict --predict_input={fake}",
        "could not be read as images", **DAMAGED),
    Bad("no model in the workdir", PREDICT, "holds no exported model"),
    Bad("model absent", f"{PREDICT} --predict_model=/a.tflite", "There is no model"),
    Bad("model is text", f"{PREDICT} --predict_model={{text}}",
        "Cannot read the model"),
    Bad("half a model", PREDICT, "Cannot read the model",
        spoil=cut("export/student_int8.tflite")),
    Bad("output where one may not write", f"{PREDICT} --predict_output={{closed}}/a",
        "Permission denied", how="unprivileged", **DAMAGED),
    Bad("output below a file", f"{PREDICT} --predict_output={{text}}/a.csv",
        "text.keras", **DAMAGED),
]  # fmt: skip
SEARCHES = [
    Bad("space absent", f"{SEARCH} --search_space=absent", "or a file"),
    Bad("space with an unknown option", f"{SEARCH} --search_space={{space_unknown}}",
        "colour"),
    Bad("space with a line it cannot read", f"{SEARCH} --search_space={{space_odd}}",
        "student_rounds"),
    Bad("space with a value out of range", f"{SEARCH} --search_space={{space_range}}",
        "student_rounds"),
    Bad("no trials", f"{SEARCH} --max_trials=0", "hyperband"),
    Bad("nothing to judge by", f"{SEARCH} --method=kd", "--real_samples"),
]  # fmt: skip
REQUESTS = [
    *FLAGS, *COMBINATIONS, *TEACHERS, *WORKDIRS, *LATER, *PREDICTIONS, *SEARCHES,
]  # fmt: skip
