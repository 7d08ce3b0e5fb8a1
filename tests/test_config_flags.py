"""Options live once, and every one of them is a flag."""

import dataclasses

import pytest
from absl import flags as absl_flags

from cdfkd_tf import flags
from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import SPECS
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.aggregators import AGGREGATORS
from cdfkd_tf.networks.students import SHARING


def parse(*arguments):
    values = absl_flags.FlagValues()
    flags.define(values)
    return flags.parse(["main.py", *arguments], values)


def test_no_argument_gives_the_defaults():
    assert parse() == RunConfig()


def test_flags_of_every_type_reach_the_config():
    config = parse(
        "--seed=3",
        "--student_width=0.5",
        "--noresume",
        "--milestones=4,5",
        "--teachers=a.keras,b.keras",
        "--generator_bn_weight=0.3",
        "--method=dfed",
        "--export_formats=",
    )
    assert config == RunConfig(
        seed=3,
        student_width=0.5,
        resume=False,
        milestones=(4, 5),
        teachers=("a.keras", "b.keras"),
        generator_bn_weight=0.3,
        method="dfed",
        export_formats=(),
    )


def test_written_flags_repeat_the_run(tmp_path):
    config = RunConfig(
        seed=7, milestones=(), student_ensemble_weight=2.5, debug=True, dataset="digits"
    )
    file = tmp_path / "run.flags"
    file.write_text(config.flag_lines())
    assert parse(f"--flagfile={file}") == config


def test_command_line_beats_the_flagfile_before_it(tmp_path):
    file = tmp_path / "run.flags"
    file.write_text("# a comment\n--seed=1\n--epochs=9\n")
    config = parse(f"--flagfile={file}", "--seed=2")
    assert (config.seed, config.epochs) == (2, 9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--colour=red"], "Unknown command line flag 'colour'"),
        (["--epochs=many"], "epochs"),
        (["--method=magic"], "method"),
        (["--flagfile=missing.flags"], "missing.flags"),
        (["distill"], "Unexpected argument 'distill'"),
        (["--milestones=a,b"], "--milestones must be a comma list of whole numbers"),
        (["--epochs=0"], "--epochs must be at least 1; got 0"),
        (["--student_width=0"], "--student_width must be positive; got 0.0"),
        (["--real_samples=1"], "--real_samples=1 cannot be learned from"),
        (["--generator_beta1=1"], r"--generator_beta1 must be in \[0, 1\)"),
        (["--temperature=0"], "--temperature must be positive"),
        (["--export_formats=onnx"], "got 'onnx'"),
    ],
)
def test_wrong_requests_are_explained(arguments, message):
    with pytest.raises(RequestError, match=message):
        parse(*arguments)


def test_choices_are_the_tables():
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(RunConfig)}
    assert set(choices["method"]) == set(METHODS)
    assert set(choices["dataset"]) == {*SPECS, "folder", "none"}
    assert set(choices["aggregator"]) == set(AGGREGATORS)
    assert set(choices["student_headers"]) == {"", *SHARING}


def test_help_has_one_line_for_every_flag_in_its_group():
    lines = flags.help_page().splitlines()
    for field in dataclasses.fields(RunConfig):
        assert sum(line.startswith(f"  --{field.name}: ") for line in lines) == 1
        assert field.metadata["group"] in lines


def test_help_prints_and_leaves(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    assert "--student_width" in capsys.readouterr().out
