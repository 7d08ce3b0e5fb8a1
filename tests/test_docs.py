"""The pages: what they say to type is a right request and runs; messages are real."""

import ast
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import cdfkd_tf
from tests import toys
from tests.test_flagfiles import TWO_STEPS
from tests.toys import parse, run_main

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "experiments/**/*.md")
    for page in sorted(ROOT.glob(pattern))
]
COMMAND = re.compile(r"^ *(?:python main\.py|cdfkd-tf) +(.*)$", re.MULTILINE)
# Downloads, days on a GPU, or another's file.
ELSEWHERE = ("cifar100", "...", "a.pt")


def commands():
    """The arguments of every command of this program on the pages, predictions last."""
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    found = {tuple(c.partition(" #")[0].split()) for c in COMMAND.findall(text)}
    return sorted(found, key=lambda arguments: ("predict" in arguments[0], arguments))


def test_commands_on_the_pages_are_right_requests(monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = [c for c in commands() if c[0].startswith("--") and "=..." not in c[0]]
    assert len(flags) > 8
    for arguments in flags:
        assert parse(*arguments).workdir, arguments


def literals(module):
    """Texts of a module, values within them as `…`."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (
                v.value if isinstance(v, ast.Constant) else "…" for v in node.values
            )
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_that_are_explained_are_those_of_the_package():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    texts = [t for file in (ROOT / "cdfkd_tf").rglob("*.py") for t in literals(file)]
    texts = "\n".join(texts)
    assert len(messages) > 12
    assert [message for message in messages if message not in texts] == []


def test_relative_links_on_the_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert broken == []


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "docs/api/index.html", "experiments/edge/index.html"):
        assert (tmp_path / page).is_file()
    assert (
        "Distils several classifiers" in (tmp_path / "docs/api/index.html").read_text()
    )


@pytest.mark.slow
def test_code_for_users_of_keras_distillation_runs():
    """The page's own code: the student moves, the teachers do not."""
    page = (ROOT / "docs/keras_distillation.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, *toys.SHAPE)).astype("float32")
    names = {
        "keras": keras,
        "cdfkd_tf": cdfkd_tf,
        "model_a": toys.classifier(seed=0),
        "model_b": toys.probabilities_of_bytes(),
        "student": toys.classifier(seed=2),
        "x": x,
        "y": rng.integers(toys.CLASSES, size=16),
    }
    models = names["model_a"], names["model_b"], names["student"]
    *teachers, before = map(toys.values_of, models)
    small = "minutes=0.02, bank_size=64, epochs=1, verbose=0"
    for block in blocks:
        exec(block.replace("minutes=5", small), names)
        if "student=student" in block:
            assert toys.moved(before, toys.values_of(models[2]))
            before = toys.values_of(models[2])
    for values, model in zip(teachers, models):
        assert not toys.moved(values, toys.values_of(model))
    assert names["result"].predictor(x).shape == (16, toys.CLASSES)


@pytest.mark.slow
def test_teacher_model_is_the_mean_of_logits_of_what_each_teacher_takes():
    a, b = toys.classifier(seed=0), toys.probabilities_of_bytes()
    x = np.random.default_rng(0).uniform(size=(4, *toys.SHAPE)).astype("float32")
    read = {"teacher_input": ("0..1", "0..255"), "teacher_output": "auto"}
    together = cdfkd_tf.teacher_model([a, b], **read)
    logits = np.log(b(x * 255))  # the softmax's input, but for a constant per image
    centred = [each - each.mean(-1, keepdims=True) for each in (np.array(a(x)), logits)]
    found = np.array(together(x))
    found -= found.mean(-1, keepdims=True)
    np.testing.assert_allclose(found, np.mean(centred, axis=0), atol=1e-4)


@pytest.mark.slow
def test_commands_on_the_pages_run(tmp_path, monkeypatch, data_dir):
    """Each with two steps of narrow networks, in one folder, as a reader would."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate("abc"):
        toys.classifier(seed=index).save(f"{name}.keras")
    toys.image_folder(tmp_path / "images", toys.CLASS_NAMES)
    (tmp_path / "images" / "test" / "ant").rename(tmp_path / "pictures")
    (tmp_path / "images" / "test" / "ant").symlink_to(tmp_path / "pictures")
    few = (*TWO_STEPS, "--bank_size=64", "--max_trials=1")
    few = [flag for flag in few if not flag.startswith("--data_dir")]
    few += [f"--data_dir={data_dir}", "--teacher_input=0..1"]
    ran = 0
    # What others read is written first.
    for arguments in sorted(commands(), key=lambda words: words[0] != "make-example"):
        if any(word in argument for word in ELSEWHERE for argument in arguments):
            continue
        given = [a for a in arguments if not a.startswith("--minutes")]
        if not given[0].startswith("--"):
            given += ["--epochs=1"] * (given[0] == "make-example")
        elif "predict" not in given[0]:
            given += few
            if any("labelled_samples" in argument for argument in given):
                given += ["--labelled_samples=4"]  # there are few images
        if any("three_models" in argument for argument in given):  # in their place
            known = (f"{own},{','.join(toys.CLASS_NAMES[1:])}" for own in "abc")
            given += ["--teachers=a.keras,b.keras,c.keras", "--minutes=0.1"]
            given += [f"--teacher_classes={';'.join(known)}", "--labelled_samples=0"]
        assert run_main(*given) == 0, arguments
        ran += 1
    assert ran >= 8
