"""What benchmarks and cost tables compute from what they measured or counted."""

import numpy as np
import pytest

from experiments.benchmarks import growth
from experiments.cost import Cost, Messages


def rows(law, memory):
    found = []
    for point in growth.points():
        pixels = point.batch_size * point.side**2 / (16 * 32**2)
        size = (point.teachers * pixels, point.headers)
        work = 10.0 + 7 * size[0]
        measured = {"seconds": law(work), "peak_megabytes": memory(*size)}
        names = ("teachers", "batch_size", "side", "headers")
        shape = {name: getattr(point, name) for name in names}
        found.append({**shape, **measured, "gigaflop": work})
    return found


def test_laws_of_growth_come_back_from_what_follows_them():
    measured = rows(lambda work: 0.2 + work / 150, lambda a, b: 800 + 140 * a + 50 * b)
    time, memory = growth.fit_time(measured), growth.fit_memory(measured)
    assert time["fixed_seconds"] == pytest.approx(0.2)
    assert time["gigaflop_per_second"] == pytest.approx(150)
    assert memory["fixed"] == pytest.approx(800)
    assert memory["per_teacher_and_pixels"] == pytest.approx(140)
    assert memory["per_header"] == pytest.approx(50)
    assert time["largest_error"] < 1e-9


def test_growth_measures_each_point_once_and_changes_one_thing_at_a_time():
    found = growth.points()
    assert len(set(found)) == len(found) == 18
    base = np.array([3, 16, 32])
    for point in found:
        own = np.array([point.teachers, point.batch_size, point.side])
        assert (own != base).sum() <= 1


def test_eight_gpus_wait_for_their_messages():
    said = Messages(count=20_000, size=300_000_000_000, copied=30_000_000_000)
    # 50 us a message; 7/4 of the gradients at 150 GB/s; seven copies at 300 GB/s.
    assert said.seconds == pytest.approx(1 + 3.5 + 0.7)
    cost = Cost("dfq", 1, compute=80.0, messages=said)
    assert cost.on_eight == pytest.approx(15.2)
    assert cost.efficiency == pytest.approx(10 / 15.2)
    assert Cost("teachers", 1, 80.0, None).on_eight == 80.0
