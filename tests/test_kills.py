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
from tests.conftest import run_main
from tests.small import small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of one command, one of them killed: `whole` and `killed`."""
    folder = tmp_path_factory.mktemp("kills")
    # Later values win: long enough to be met within, short enough for a test.
    more = ("--action=distill", "--epochs=30", "--keep_best")
    flags = [*small_run(folder), *more, "--deterministic=true", "--seed=3"]
    assert run_main(*flags, f"--workdir={folder / 'whole'}") == 0
    kill = Kill("writing", 0.1)
    disturb(flags, folder / "killed", [kill])
    assert kill.wrote and kill.went_on != "the start", kill
    return folder


def test_killed_and_resumed_deterministic_runs_end_with_the_same_bits(folder):
    found = differences(folder / "whole", folder / "killed")
    assert found == {"student": 0, "generator": 0}


def test_no_row_of_the_history_is_lost_or_doubled(folder):
    assert same_history(folder / "whole", folder / "killed")
    assert len((folder / "killed/history.csv").read_text().splitlines()) == 31


def test_nothing_half_written_stays(folder):
    names = [file.name for file in (folder / "killed").rglob("*")]
    assert not [name for name in names if name.startswith(".") or "temp" in name]


def test_twenty_kills_are_planned_at_all_moments():
    kills = planned(PLAN, seed=0)
    assert len(kills) == 20 and {kill.moment for kill in kills} == set(MOMENTS)
    assert [k.seconds for k in kills] == [k.seconds for k in planned(PLAN, seed=0)]
    assert table(kills).count("\n") == 21
