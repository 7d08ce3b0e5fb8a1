"""Damaged model files and checkpoints: refused by one sentence, or read as numbers.

Never run, never endless: each case has a time limit, and a Lambda in the files would
leave a mark. All damage is drawn from seeds, see conftest.py.
"""

import contextlib
import gc
import io
import json
import random
import signal
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.loading import SavedModelClassifier, load_classifier
from tests import toys
from tests.rows import rows

pytestmark = pytest.mark.slow
SECONDS = 20  # for one case


@pytest.fixture(scope="module", autouse=True)
def without_earlier_tests():
    """Each of hundreds of files would have a whole run's garbage looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@contextlib.contextmanager
def limited():
    """Ends what takes too long with an error."""

    def late(number, frame):
        raise AssertionError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(content, seed):
    """Some bits flipped, a part overwritten, or the end cut off."""
    rng, content = random.Random(seed), bytearray(content)
    kind = rng.choice(("bits", "bits", "part", "end"))
    if kind == "end":
        return bytes(content[: rng.randrange(len(content))])
    if kind == "part":
        start = rng.randrange(len(content))
        length = min(rng.randrange(1, 64), len(content) - start)
        content[start : start + length] = rng.randbytes(length)
        return bytes(content)
    for _ in range(rng.choice((1, 2, 20))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def damaged_inside(content, seed):
    """A `.keras` whose sums are right and whose description of the model is not."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w") as new,
    ):
        for name in old.namelist():
            inner = old.read(name)
            new.writestr(name, damaged(inner, seed) if "config" in name else inner)
    return buffer.getvalue()


def swapped(content, seed):
    """A `.keras` in whose description one value is another of its values."""
    rng, buffer = random.Random(seed), io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w") as new,
    ):
        config = json.loads(old.read("config.json"))
        places = [*_places(config)]
        (table, key), (other, name) = rng.choice(places), rng.choice(places)
        table[key] = json.loads(json.dumps(other[name]))
        for member in old.namelist():
            text = json.dumps(config).encode()
            new.writestr(member, text if member == "config.json" else old.read(member))
    return buffer.getvalue()


def _places(part):
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield part, key
        if isinstance(value, dict | list):
            yield from _places(value)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Contents of files by name, and the mark that running them would leave."""
    folder, mark = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("m") / "ran"
    path = str(mark)
    image = keras.Input(toys.SHAPE)
    tensor = keras.layers.Flatten()(image)
    tensor = keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1])(tensor)
    keras.Model(image, keras.layers.Dense(4)(tensor)).save(folder / "lambda.keras")
    mark.unlink(missing_ok=True)  # building it has run it
    network = toys.classifier(seed=0)
    for name in ("plain.keras", "plain.h5"):
        network.save(folder / name)
    network.export(folder / "saved", verbose=False)
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}, folder, mark


@rows(
    "name, damage",
    [
        ("plain.keras", damaged),
        ("plain.keras", damaged_inside),
        ("plain.keras", swapped),
        ("lambda.keras", damaged_inside),
        ("lambda.keras", swapped),
        ("plain.h5", damaged),
    ],
)
def test_load_classifier_refuses_or_reads_a_damaged_file(
    name, damage, good, fuzz_seeds, tmp_path
):
    contents, _, mark = good
    file = tmp_path / name
    outcomes = set()
    for seed in fuzz_seeds:
        file.write_bytes(damage(contents[name], seed))
        with limited():
            outcomes.add(outcome_of(file))
    assert not mark.exists()
    assert "refused" in outcomes


def outcome_of(file):
    try:
        model = load_classifier(file)
    except RequestError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return "refused"
    assert isinstance(model, keras.Model | SavedModelClassifier)
    return "read"


def test_load_classifier_refuses_or_reads_a_damaged_saved_model(
    good, fuzz_seeds, tmp_path
):
    _, folder, _ = good
    content = (folder / "saved/saved_model.pb").read_bytes()
    saved = tmp_path / "saved"
    (saved / "variables").mkdir(parents=True)
    for file in (folder / "saved/variables").iterdir():
        (saved / "variables" / file.name).write_bytes(file.read_bytes())
    outcomes = set()
    for seed in fuzz_seeds:
        (saved / "saved_model.pb").write_bytes(damaged(content, seed))
        with limited():
            outcomes.add(outcome_of(saved))
    assert "refused" in outcomes


def test_restore_refuses_or_reads_a_damaged_checkpoint(fuzz_seeds, tmp_path):
    variable = tf.Variable(np.ones((50, 4), "float32"))
    saved_by(variable, tmp_path).on_epoch_end(0)
    files = sorted(tmp_path.glob("ckpt-*"))
    contents = {file: file.read_bytes() for file in files}
    outcomes = []
    for seed in fuzz_seeds:
        chosen = files[seed % len(files)]
        chosen.write_bytes(damaged(contents[chosen], seed))
        with limited():
            try:
                saved_by(variable, tmp_path).restore()
                outcomes.append("read")
            except RunError as error:
                assert "Cannot resume from" in str(error) and "Delete" in str(error)
                outcomes.append("refused")
        chosen.write_bytes(contents[chosen])
        assert variable.shape == (50, 4)
    assert outcomes.count("refused") > len(outcomes) / 3


def saved_by(variable, directory):
    state = TrainingState({"weight": variable}, directory, steps_per_epoch=1)
    state.on_train_begin()
    return state
