"""One row per option: flags, checks, help and staleness follow from it."""

import dataclasses
import itertools
import pathlib
import re

import numpy as np
import pytest

import cdfkd_tf
from cdfkd_tf.config import (
    FIELDS,
    GROUPS,
    REMOVED,
    RENAMED,
    STEPS,
    RunConfig,
    check_names,
    choices_of,
)
from cdfkd_tf.data.specs import SPECS
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import RequestError
from cdfkd_tf.export.format import FORMATS
from cdfkd_tf.networks.aggregators import AGGREGATORS
from cdfkd_tf.networks.students import SHARING
from cdfkd_tf.teachers.rules import RULES
from tests.toys import parse


def test_parse_of_no_argument_gives_the_defaults():
    assert parse() == RunConfig()


def test_parse_reads_values_of_every_type():
    flags = [
        "--seed=3",
        "--student_width=0.5",
        "--noresume",
        "--milestones=4,5",
        "--teachers=a.keras,b.keras",
        "--student_loss=header=2, feature=0",
        "--generator_loss=bn=1e-1,header=-1",
        "--method=dfed",
        "--export_formats=",
    ]
    assert parse(*flags) == RunConfig(
        seed=3,
        student_width=0.5,
        resume=False,
        milestones=(4, 5),
        teachers=("a.keras", "b.keras"),
        student_loss={"header": 2.0, "feature": 0.0},
        generator_loss={"bn": 0.1, "header": -1.0},
        method="dfed",
        export_formats=(),
    )


def test_parse_of_written_flags_repeats_the_run(tmp_path):
    config = RunConfig(
        seed=7,
        milestones=(),
        student_loss={"ensemble": 2.5, "bn": 1e-7},
        debug=True,
        dataset="digits",
    )
    file = tmp_path / "run.flags"
    file.write_text(config.flag_lines())
    assert parse(f"--flagfile={file}") == config
    assert parse(*config.changed_flags()) == config
    assert len(config.changed_flags()) == 5


def test_command_line_beats_the_flagfile_before_it(tmp_path):
    file = tmp_path / "run.flags"
    file.write_text("# a comment\n--seed=1\n--epochs=9\n--student_loss=header=3\n")
    config = parse(f"--flagfile={file}", "--seed=2", "--student_loss=feature=1")
    assert (config.seed, config.epochs) == (2, 9)
    assert config.student_loss == {"feature": 1.0}


def test_run_config_reads_what_python_has():
    config = RunConfig(
        epochs="12",
        batch_size=np.int64(8),
        student_width=np.float32(0.5),
        student_learning_rate=1,
        milestones=[1, 2],
        resume="false",
        workdir=pathlib.Path("runs/x"),
        student_loss="header=2",
        generator_loss={"bn": np.float64(0.5)},
    )
    assert (config.epochs, config.batch_size) == (12, 8)
    assert type(config.batch_size) is int and type(config.student_width) is float
    assert config.student_learning_rate == 1.0 and config.milestones == (1, 2)
    assert config.resume is False and config.workdir == "runs/x"
    assert config.student_loss == {"header": 2.0}
    assert config.generator_loss == {"bn": 0.5}
    assert parse(*config.flag_lines().splitlines()) == config


def test_run_config_refuses_values_of_another_kind():
    for options, message in [
        ({"epochs": True}, "--epochs must be a whole number; got bool True"),
        ({"epochs": 1.5}, "--epochs must be a whole number; got float 1.5"),
        ({"resume": 1}, "--resume must be true or false; got int 1"),
        ({"milestones": 3}, "--milestones must be a comma list; got int 3"),
        ({"student_loss": 0.5}, "--student_loss must be a list such as"),
        ({"workdir": None}, "--workdir must be text; got NoneType"),
        ({"generator_loss": {"bn": np.inf}}, "a finite number; got inf"),
        ({"student_width": 10**6}, "--student_width must be at most 64"),
    ]:
        with pytest.raises(RequestError, match=message):
            RunConfig(**options)


def test_with_values_replaces_options_and_entries_of_tables():
    config = RunConfig(student_loss={"header": 2.0})
    changed = config.with_values({"student_loss.feature": 0.5, "epochs": 3})
    assert changed.student_loss == {"header": 2.0, "feature": 0.5}
    assert changed.epochs == 3 and config.student_loss == {"header": 2.0}
    both = config.with_values({"generator_loss.bn": 1, "generator_loss.header": -1})
    assert both.generator_loss == {"bn": 1.0, "header": -1.0}
    with pytest.raises(RequestError, match="no option 'epoch'; did you mean 'epochs'"):
        config.with_values({"epoch": 3})


def test_renamed_flags_are_answered_with_their_new_names():
    for old in REMOVED:
        with pytest.raises(RequestError, match=f"no flag --{old} since .*Leave it out"):
            parse(f"--{old}")
        assert old not in FIELDS
    assert len(RENAMED) > 10
    for old, new in RENAMED.items():
        message = f"There is no flag --{old}: it is called --{new} since version 0.2.0."
        for flag in (f"--{old}=1", f"--no{old}"):
            with pytest.raises(RequestError) as refused:
                parse(flag)
            assert str(refused.value) == message
        assert new.partition("=")[0] in FIELDS and old not in FIELDS
        with pytest.raises(RequestError, match=f"--{new}"):
            check_names([old])


def test_choices_are_the_tables():
    choices = {name: set(choices_of(field)) for name, field in FIELDS.items()}
    assert choices["method"] == {"", *METHODS}
    assert choices["dataset"] == {"", *SPECS, "folder", "none"}
    assert choices["aggregator"] == {"auto", *AGGREGATORS, "best"}
    assert choices["ensemble"] == {"auto", *RULES}
    assert choices["export_formats"] == set(FORMATS)
    assert choices["student_headers"] in (set(), {"", *SHARING})


def test_options_behind_a_step_are_those_that_change_its_result():
    names = {step: set(RunConfig().options_behind(step)) for step in STEPS}
    for earlier, later in itertools.pairwise(STEPS):
        assert names[earlier] <= names[later]
    assert {"seed", "dataset", "teacher_network"} <= names["train_teachers"]
    assert {"student_loss", "epochs", "batch_size"} <= names["distill"]
    assert "epochs" not in names["train_teachers"]
    assert "aggregator" in names["fit_aggregator"] - names["distill"]
    assert "export_formats" in names["export"] - names["evaluate"]
    without_effect = {"workdir", "action", "resume", "debug", "evaluate_every"}
    assert not without_effect & names["export"]


def test_options_behind_costly_steps_are_the_same_without_measuring():
    test, none = RunConfig(), RunConfig(evaluation_split="none")
    assert test.options_behind("distill") == none.options_behind("distill")
    assert test.options_behind("evaluate") != none.options_behind("evaluate")
    validation = RunConfig(evaluation_split="validation")  # other images to learn from
    assert test.options_behind("distill") != validation.options_behind("distill")


def test_every_option_stands_in_a_group_and_affects_a_step():
    for field in dataclasses.fields(RunConfig):
        assert field.metadata["group"] in GROUPS
        assert field.metadata["affects"] in ("", *STEPS)
        assert field.metadata["help"].endswith(".")


def test_names_of_files_are_expanded_as_a_shell_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.keras", "a.keras", "[1].h5"):
        (tmp_path / name).touch()
    options = {
        "workdir": "~/run",
        "student": pathlib.Path("~/a.keras"),
        "teachers": "~/*.keras,~/[1].h5",
    }
    for _ in range(2):  # the second time, of what was found
        config = RunConfig(**options)
        assert config.workdir == str(tmp_path / "run")
        assert config.student == str(tmp_path / "a.keras")
        names = [tmp_path / "a.keras", tmp_path / "b.keras", tmp_path / "[1].h5"]
        assert config.teachers == tuple(map(str, names))
        options = {name: getattr(config, name) for name in options}


def test_flags_that_messages_name_are_there():
    known = {*FIELDS, *RENAMED, *REMOVED, "helpfull", "flagfile", "flag", "name"}
    known |= {
        "help",
        "recipe",
        "version",
        "checkpoint",
    }  # the latter of tools/import_torch.py
    named = {}
    for file in (pathlib.Path(cdfkd_tf.__file__).parent).rglob("*.py"):
        if file.parent.name == "tools":
            continue  # have flags of their own
        for text in re.findall(r"(?<![\w-])--(?:no)?([a-z]\w+)", file.read_text()):
            named.setdefault(text, file.name)
    assert {name: file for name, file in named.items() if name not in known} == {}
    assert len(named) > 50
