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
        flags: of the command line, behind those of `base`.
        words: that the message must hold.
        base: flags of the toy run: `with_data`, `without_data`, or none.
        code: its exit code.
        spoil: changes a copy of the finished workdir first; it gets the copy.
        fresh: in a workdir that is not there yet, else in the finished one.
        how: `unprivileged`: as a user without rights; `full`: no file may grow beyond
            some bytes; `taken`: while another run holds the workdir.
        quick: one of the dozen that `make test` makes, too.
    """

    what: str
    flags: str
    words: str
    base: str = "without_data"
    code: int = 2
    spoil: Callable[[pathlib.Path], None] | None = None
    fresh: bool = True
    how: str = ""
    quick: bool = False


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


def result(**changes) -> Callable[[pathlib.Path], None]:
    """results.json with other values; None: without that key."""

    def spoil(run):
        results = json.loads((run / "results.json").read_text()) | changes
        kept = {key: value for key, value in results.items() if value is not None}
        (run / "results.json").write_text(json.dumps(kept))

    return spoil


def file_for_folder(name: str) -> Callable[[pathlib.Path], None]:
    """A file lies where a folder is to be."""

    def spoil(run):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("a file")

    return spoil


def closed(name: str) -> Callable[[pathlib.Path], None]:
    """Without rights nothing can be written there."""

    def spoil(run):
        if os.geteuid() == 0:
            os.chown(run / name, 0, 0)
        (run / name).chmod(0o555)

    return spoil


DISTILL, NONE = "--action=distill", "--dataset=none --image_shape=8,8,1"
PREDICT = "--action=predict --predict_input={pictures}"
SEARCH = "--action=search --teachers={teacher}"
DATA = {"base": "with_data"}
FINISHED = {"base": "with_data", "fresh": False}

# Refused while the command line is read. Without any other flag.
PARSED = [
    Bad("unknown flag", "--colour=red", "Unknown command line flag 'colour'"),
    Bad("a flag misspelled", "--epoch=3", "Did you mean --epochs?"),
    Bad("an old name of a flag", "--student_rounds=3", "--student_steps since version"),
    Bad("an old name of a weight", "--generator_bn_weight=1",
        "--generator_loss=bn=WEIGHT since"),
    Bad("a word for a number", "--epochs=many",
        "--epochs must be a whole number; got 'many'"),
    Bad("a word for yes or no", "--resume=maybe",
        "--resume must be true or false; got 'maybe'"),
    Bad("a number below its range", "--epochs=0", "--epochs must be at least 1; got 0"),
    Bad("a number above its range", "--teacher_width=65", "at most 64; got 65"),
    Bad("negative seed", "--seed=-1", "--seed must be at least 0; got -1"),
    Bad("batch of one", "--batch_size=1", "--batch_size must be at least 2"),
    Bad("learning rate 0", "--student_learning_rate=0", "must be positive; got 0"),
    Bad("width 0", "--student_width=0", "--student_width must be positive; got 0"),
    Bad("temperature 0", "--temperature=0", "--temperature must be positive"),
    Bad("no number", "--student_learning_rate=nan", "a finite number; got nan"),
    Bad("infinite weight", "--generator_loss=bn=inf", "a finite number; got inf"),
    Bad("a weight without a term", "--student_loss=0.2", "a list such as header=1"),
    Bad("a word for a weight", "--student_loss=header=much", "a list such as header=1"),
    Bad("negative clipping", "--clip_gradients=-1", "--clip_gradients must be at"),
    Bad("beta of 1", "--generator_beta1=1", "--generator_beta1 must be at most"),
    Bad("words in a list of numbers", "--milestones=1,last",
        "--milestones must be a comma list of whole numbers"),
    Bad("unknown format", "--export_formats=tflite", "got 'tflite'"),
    Bad("unknown action", "--action=destill", "distill, fit_aggregator"),
    Bad("unknown method", "--method=mfs", "one of cdfkd_mfs"),
    Bad("unknown data set", "--dataset=svhn", "one of digits"),
    Bad("unknown aggregator", "--aggregator=vote", "one of auto, mean"),
    Bad("unknown arithmetic", "--dtype_policy=float16", "mixed_float16; got 'float16'"),
    Bad("unknown pixel values", "--teacher_input=0..9", "--teacher_input must be one"),
    Bad("an argument without --", "--seed=1 distill",
        "Unexpected argument 'distill'. Options start with --"),
    Bad("no such flagfile", "--flagfile=absent.flags", "absent.flags"),
    Bad("unknown flag in a flagfile", "--flagfile={bad_flags}", "'colour'"),
    Bad("no data, no teachers", NONE, "Name them with --teachers"),
    Bad("samples of no data", f"{NONE} --teachers=a.keras --labelled_samples=9",
        "no real images"),
    Bad("one sample to learn from", "--labelled_samples=1", "Give 0, or at least 2"),
    Bad("class count twice", "--num_classes=10", "--num_classes belongs"),
    Bad("size twice", "--image_shape=8,8,1", "--image_shape belongs"),
    Bad("a folder without its data set", "--dataset=digits --image_folder=x",
        "--image_folder belongs"),
    Bad("no trials", "--action=search --max_trials=0", "hyperband"),
    Bad("a search over hosts", "--action=search --strategy=multi_worker",
        "shares trials, not batches"),
    Bad("several processes, all anew", "--strategy=multi_worker --noresume",
        "--noresume cannot be given to several processes"),
]  # fmt: skip
COMBINATIONS = [
    Bad("kd without data", f"{DISTILL} --method=kd", "learns from real images"),
    Bad("a term that is not known", f"{DISTILL} --student_loss=colour=1",
        "--student_loss knows header", quick=True),
    Bad("kd with a generator's term", f"{DISTILL} --method=kd --generator_loss=bn=1",
        "no generator", **DATA),
    Bad("nothing to learn", f"{DISTILL} --student_loss=header=0,ensemble=0,feature=0",
        "all its weights are 0"),
    Bad("temperature without softmax", f"{DISTILL} --temperature=4", "Leave it out"),
    Bad("size of two numbers", f"{DISTILL} --image_shape=8,8",
        "height,width,channels"),
    Bad("unknown generator", f"{DISTILL} --generator=gan", "Unknown generator 'gan'"),
    Bad("replicas on one device", f"{DISTILL} --strategy=mirrored",
        "at least two devices"),
    Bad("two teachers, one header", f"{DISTILL} --student_headers=single",
        "1 headers and there are 2 teachers"),
    Bad("a term that nothing feeds", f"{DISTILL} --teachers={{without_bn}} "
        "--generator_loss=header=0", "no teacher has BatchNormalization"),
    Bad("views of images that are not fitted", f"{DISTILL} --generator_loss=contrast=1",
        "Use --method=cmi"),
    Bad("features of another width", f"{DISTILL} --teachers={{wide}},{{wide}} "
        "--student_loss=feature=0.2", "--student_loss=feature=0", quick=True),
]  # fmt: skip
TEACHERS = [
    Bad("unknown network", "--action=train_teachers --dataset=digits "
        "--teacher_network=vgg", "Unknown network 'vgg'", base=""),
    Bad("data set not there", "--action=train_teachers --dataset=mini_imagenet "
        "--teacher_network=lenet --student=lenet --data_dir={folder}",
        "downloads/manual/mini_imagenet", base=""),
    Bad("broken archive", "--action=train_teachers --dataset=cifar10 "
        "--teacher_network=lenet --student=lenet --student_headers=single "
        "--num_teachers=1 --data_dir={broken_data}", "Remove the broken file", base=""),
    Bad("folder of images absent", f"{DISTILL} --image_folder=absent",
        "no folder 'absent'", **DATA),
    Bad("a class without images", f"{DISTILL} --image_folder={{hollow}}",
        "holds no image", **DATA),
    Bad("a file that is no image", f"{DISTILL} --image_folder={{fake}}",
        "a.png (it is none of PNG", **DATA),
    Bad("teacher absent", f"{DISTILL} --teachers=absent.keras",
        "no teacher file absent.keras", **DATA),
    Bad("teacher empty", f"{DISTILL} --teachers={{empty}}", "empty.keras: it is empty"),
    Bad("teacher is text", f"{DISTILL} --teachers={{text}}", "Cannot read teacher",
        quick=True),
    Bad("half a teacher", f"{DISTILL} --teachers={{half}}", "Cannot read teacher"),
    Bad("teacher with a Lambda", f"{DISTILL} --teachers={{unsafe}}",
        "Cannot read teacher"),
    Bad("folder that is no SavedModel", f"{DISTILL} --teachers={{pictures}}",
        "saved_model.pb"),
    Bad("teacher of other classes", f"{DISTILL} --teachers={{teacher}},{{seven}}",
        "seven.keras answers 7 classes", quick=True),
    Bad("class count of other teachers", f"{DISTILL} --num_classes=5",
        "4 classes", quick=True),
    Bad("teacher of other channels", f"{DISTILL} --teachers={{two_channels}}",
        "two_channels.keras takes"),
    Bad("pixel values of more teachers", f"{DISTILL} --teacher_input=0..1,0..1,0..1",
        "one for each of the 2"),
    Bad("teacher one may not read", f"{DISTILL} --teachers={{secret}}",
        "secret.keras", how="unprivileged"),
    Bad("unknown student", f"{DISTILL} --student=vgg", "Unknown network 'vgg'",
        quick=True),
    Bad("unknown layer to read", f"{DISTILL} --student={{seven}} "
        "--student_feature_layers=absent", "has no layer 'absent'"),
]  # fmt: skip
WORKDIRS = [
    Bad("workdir is a file", f"{DISTILL} --workdir={{text}}", "text.keras"),
    Bad("workdir where one may not write", f"{DISTILL} --workdir={{closed}}/run",
        "Permission denied", how="unprivileged"),
    Bad("more memory than there is", f"{DISTILL} --batch_size=100000000",
        "GB. Less take a --batch_size below 100000000", quick=True),
    Bad("workdir of other options", f"{DISTILL} --student_steps=3",
        "--student_steps=2; now it is --student_steps=3", quick=True, **FINISHED),
    Bad("the same, again from the start but wrong", f"{DISTILL} --noresume "
        "--student=vgg", "Unknown network 'vgg'", quick=True, **FINISHED),
    Bad("teachers again from absent data", "--action=train_teachers --noresume "
        "--image_folder=absent", "no folder 'absent'", **FINISHED),
    Bad("workdir in use", DISTILL, "is in use by process", how="taken", quick=True,
        **FINISHED),
    Bad("results.json cut", "", "results.json is not as", spoil=cut("results.json"),
        **DATA),
    Bad("results.json a list", "", "a list, not a table",
        spoil=write("results.json", "[]"), **DATA),
    Bad("results.json without teachers", "", "'teachers' is missing",
        spoil=result(teachers=None), quick=True, **DATA),
    Bad("results.json of an older version", "", "its format is 1",
        spoil=result(format=1), **DATA),
    Bad("progress.json overwritten", "", "progress.json is not as",
        spoil=write("progress.json", "done"), **DATA),
    Bad("half a checkpoint", DISTILL, "Cannot resume from", code=1,
        spoil=lambda run: (begun_with()(run), cut("checkpoints")(run)), **DATA),
    Bad("checkpoint of another architecture", f"{DISTILL} --latent_size=8",
        "Cannot resume from", code=1, spoil=begun_with(latent_size=8), **DATA),
]  # fmt: skip
LATER = [
    Bad("no student yet", "--action=fit_aggregator", "Run --action=distill first",
        quick=True),
    Bad("more samples than there are", "--action=fit_aggregator "
        "--aggregator=attention --labelled_samples=5000", "has only", **FINISHED),
    Bad("half a student", "--action=fit_aggregator", "Remove it and run",
        spoil=cut("student.keras"), **DATA),
    Bad("nothing to measure yet", "--action=evaluate", "Run --action=distill first"),
    Bad("half a predictor", "--action=evaluate", "run --action=fit_aggregator",
        spoil=cut("predictor.keras"), **DATA),
    Bad("nothing to export yet", "--action=export --export_formats=tflite_float32",
        "Run --action=fit_aggregator"),
    Bad("a file where export/ is to be", "--action=export", "export",
        spoil=file_for_folder("export"), **DATA),
    Bad("export where one may not write", "--action=export --evaluation_split=none",
        "Permission denied", spoil=closed("export"), how="unprivileged", **DATA),
    Bad("no room for the export", "--action=export --export_formats=tflite_float32",
        "Make room", code=1, how="full", **FINISHED),
    Bad("no room for a checkpoint", f"{DISTILL} --noresume", "Make room",
        code=1, how="full", **FINISHED),
    Bad("nothing to report", "--action=report", "holds no results.json"),
    Bad("report of a damaged run", "--action=report", "results.json is not as",
        spoil=write("results.json", '{"format": 2}'), **DATA),
]  # fmt: skip
PREDICTIONS = [
    Bad("nothing to classify", "--action=predict", "needs --predict_input",
        **FINISHED),
    Bad("pictures absent", "--action=predict --predict_input=/absent", "There is no",
        **FINISHED),
    Bad("no picture in the folder", "--action=predict --predict_input={hollow}",
        "holds no image file", **FINISHED),
    Bad("a picture that is none", "--action=predict --predict_input={fake}/train/a",
        "could not be read as images", **FINISHED),
    Bad("no model in the workdir", PREDICT, "holds no exported model", quick=True),
    Bad("model absent", f"{PREDICT} --predict_model=/a.tflite", "There is no model"),
    Bad("model is text", f"{PREDICT} --predict_model={{text}}",
        "Cannot read the model"),
    Bad("half a model", PREDICT, "Cannot read the model",
        spoil=cut("export/student_int8.tflite"), **DATA),
    Bad("output where one may not write", f"{PREDICT} --predict_output={{closed}}/a",
        "Permission denied", how="unprivileged", **FINISHED),
    Bad("output below a file", f"{PREDICT} --predict_output={{text}}/a.csv",
        "text.keras", **FINISHED),
]  # fmt: skip
SEARCHES = [
    Bad("space absent", f"{SEARCH} --search_space=absent", "or a file"),
    Bad("space with an unknown option", f"{SEARCH} --search_space={{space_unknown}}",
        "colour"),
    Bad("space with a line it cannot read", f"{SEARCH} --search_space={{space_odd}}",
        "student_steps", quick=True),
    Bad("space with a value out of range", f"{SEARCH} --search_space={{space_range}}",
        "student_steps"),
    Bad("nothing to judge by",
        f"{SEARCH} --method=kd --search_space=schedule --labelled_samples=0",
        "--labelled_samples", **DATA),
    Bad("no weights to search", f"{SEARCH} --method=kd", "one loss term", **DATA),
]  # fmt: skip
MADE = [*COMBINATIONS, *TEACHERS, *WORKDIRS, *LATER, *PREDICTIONS, *SEARCHES]
