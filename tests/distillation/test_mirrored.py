"""Several replicas compute what one device computes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # a process of its own, which traces ten engines
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-m", "tests.distillation.mirrored_equivalence"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


CASES = ("cdfkd_mfs", "dfq", "kd", "dfq, recomputed", "dfq, resumed")
KEPT = ("kept", "kept, resumed")  # generated images in a ring


@pytest.mark.parametrize("case", CASES + KEPT)  # the first two together have every term
def test_mirrored_replicas_equal_one_device(found, case):
    alone, replicas, differences, terms, size = found["compared"][case]
    assert (alone, replicas) == (1, 2)
    roles = ("student",) if case == "kd" else ("student", "generator")
    more = {"ring", "generator_mean"}
    parts = {*roles, *(f"{name}_optimizer" for name in roles)}
    assert set(differences) == (parts | more if case in KEPT else parts)
    assert max(differences.values()) < 1e-9 < size
    assert max(terms.values()) < 1e-9 and terms


def test_mirrored_replicas_draw_other_masks_and_repeat_none(found):
    assert len({tuple(mask) for mask in found["masks"]}) == 4


def test_mirrored_replicas_skip_together_where_one_gradient_overflows(found):
    assert found["skipped"] == [[1, 1], [0.75, 0.75]]


def test_mirrored_replicas_ask_teachers_by_shares(found):
    (_, alone), (shares, answers) = found["asked"]
    assert shares == [4, 4]  # of eight; traced once
    np.testing.assert_allclose(answers, alone, rtol=1e-5, atol=1e-5)
    assert len(answers) == 21
