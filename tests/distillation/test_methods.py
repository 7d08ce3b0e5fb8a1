"""The table: which terms each method has, and that each trains."""

import numpy as np
import pytest

from cdfkd_tf.distillation.losses import DIVERGENCES, TERMS
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.networks.students import SHARING
from tests import toys
from tests.rows import rows


def test_methods_name_what_there_is():
    for row in METHODS.values():
        assert {*row.student, *row.generator} <= set(TERMS)
        assert row.divergence in DIVERGENCES and row.sharing in SHARING
        learns = {"generated", "inverted"} & set(row.images)
        assert row.generator or not learns  # some have one for --images=generated


def test_cdfkd_mfs_is_asymmetric():
    method = METHODS["cdfkd_mfs"]
    assert method.student == {"header": 1.0, "feature": 0.2, "ensemble": 5.0}
    assert method.generator == {"header": -1.0, "bn": 0.1}


# That which compares views of fitted images is tested with these.
DATA_FREE = sorted(
    name
    for name, row in METHODS.items()
    if row.generator and "contrast" not in row.generator
)


@pytest.mark.parametrize("num_teachers", [3, pytest.param(1, marks=pytest.mark.slow)])
@rows("name", DATA_FREE)
def test_methods_take_any_number_of_teachers_and_log_their_terms(name, num_teachers):
    engine = toys.distiller(name, num_teachers=num_teachers)
    batch = engine.prepare(toys.latents())
    engine.student_step(batch, 0)
    engine.source_step(toys.latents())
    logged = engine.term_means()
    row = METHODS[name]
    expected = {f"student_{term}" for term, weight in row.student.items() if weight}
    expected |= {f"generator_{t}" for t, weight in row.generator.items() if weight}
    assert set(logged) == expected
    assert all(np.isfinite(value) for value in logged.values())
