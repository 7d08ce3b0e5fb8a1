"""What sessions share: folders made once for all workers, seeds of fuzzing."""

import os

import cdfkd_tf  # noqa: F401  before TensorFlow, whose environment it sets

# isort: split
import filelock
import hypothesis
import keras
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from cdfkd_tf.data.prepare import prepared_builder
from cdfkd_tf.data.specs import spec_of
from tests import toys

# Unset: few examples, the same in every run. Set: many, drawn from it; `make test-all`
# sets it to the date.
SEED = os.environ.get("FUZZ_SEED")
hypothesis.settings.register_profile(
    "few", derandomize=True, deadline=None, database=None, max_examples=20
)
hypothesis.settings.register_profile(
    "many", deadline=None, print_blob=True, max_examples=400
)
hypothesis.settings.load_profile("many" if SEED else "few")

# Whole runs take longest: what starts last must not keep one worker waiting.
LONGEST_FIRST = (
    "test_flagfiles",
    "test_kills",
    "test_mirrored",
    "test_multi_worker",
    "test_runs",
    "test_search",
    "test_api",
    "test_bad_requests",
    "test_parity",
    "test_run",
    "test_format",
    "test_distiller",
    "test_checkpoints",
    "test_own_teachers",
)


def pytest_configure(config):
    if SEED and hasattr(config.option, "hypothesis_seed"):
        config.option.hypothesis_seed = config.option.hypothesis_seed or SEED


def pytest_collection_modifyitems(items):
    def place(item):
        ranks = (i for i, name in enumerate(LONGEST_FIRST) if name == item.path.stem)
        return next(ranks, len(LONGEST_FIRST))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter, exitstatus):
    if SEED and exitstatus:
        terminalreporter.write_line(f"Fuzzing: FUZZ_SEED={SEED} draws the same again.")


@pytest.fixture(scope="session")
def fuzz_seeds():
    """Seeds of damaged files: a few fixed ones, or many moving ones."""
    start = int(SEED) * 1000 if SEED else 0
    return range(start, start + (120 if SEED else 10))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """`shared(name, make)`: a folder that one worker makes and all workers read."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def share(name, make):
        folder, done = root / name, root / f".{name}.done"
        with filelock.FileLock(root / f".{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return share


@pytest.fixture(scope="session")
def toy_files(shared):
    """Files of a toy run, see `toys.Files`. Read only."""
    return toys.Files(shared("toy", lambda folder: toys.Files(folder).make()))


@pytest.fixture(scope="session")
def finished(shared, toy_files):
    """A workdir with a whole pipeline, a page included. Read only: copy it."""

    def make(workdir):
        more = ("--aggregator=attention", "--labelled_samples=8", "--report")
        code = toys.run_main(*toy_files.with_data, *more, f"--workdir={workdir}")
        assert code == 0

    return shared("finished", make)


@pytest.fixture(scope="session")
def data_dir(shared):
    """A TFDS folder with a fifth of the digits."""
    return shared("tfds", few_digits)


def few_digits(folder):
    """`folder`, with a fifth of the digits prepared."""
    digits = load_digits()
    few = Bunch(images=digits.images[::5], target=digits.target[::5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.datasets.load_digits", lambda: few)
        prepared_builder(spec_of("digits"), str(folder))
    return folder


@pytest.fixture
def eagerly():
    """Without tracing: for what trains nothing, where tracing takes all the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def float64():
    """Networks, noise and losses in double precision, where rounding cannot drift."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])
