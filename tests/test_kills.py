"""Killed runs that go on end as undisturbed ones; one seed, the same bits."""

import pytest

from experiments.robustness.kills import (
    MOMENTS,
    PLAN,
    Kill,
    differences,
    disturb,
    planned,
    same_history,
    table,
)
from tests.toys import run_main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_files):
    """Two runs of one command, one of them killed: `whole` and `killed`."""
    folder = tmp_path_factory.mktemp("kills")
    # Later values win: long enough to be met within, short enough for a test.
    more = ("--action=distill", "--epochs=30", "--keep_best")
    flags = [*toy_files.without_data, *more, "--deterministic=true", "--seed=3"]
    assert run_main(*flags, f"--workdir={folder / 'whole'}") == 0
    kill = Kill("writing", 0.1)
    disturb(flags, folder / "killed", [kill])
    assert kill.wrote and kill.went_on != "the start", kill
    return folder


def test_killed_run_ends_with_the_same_bits(folder):
    found = differences(folder / "whole", folder / "killed")
    assert found == {"student": 0, "generator": 0}


def test_killed_run_loses_and_doubles_no_row_of_its_history(folder):
    assert same_history(folder / "whole", folder / "killed")
    assert len((folder / "killed/history.csv").read_text().splitlines()) == 31


def test_killed_run_leaves_nothing_half_written(folder):
    names = [file.name for file in (folder / "killed").rglob("*")]
    names = [name for name in names if name != ".lock"]
    assert not [name for name in names if name.startswith(".") or "temp" in name]


def test_planned_kills_are_twenty_at_all_moments():
    kills = planned(PLAN, seed=0)
    assert len(kills) == 20 and {kill.moment for kill in kills} == set(MOMENTS)
    assert [k.seconds for k in kills] == [k.seconds for k in planned(PLAN, seed=0)]
    assert table(kills).count("\n") == 21
