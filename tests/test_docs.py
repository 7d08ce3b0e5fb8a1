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
COMMAND = re.compile(
    r"^ *(?:python main\.py|cdfkd-tf|(?=make demo)) *(.*)$", re.MULTILINE
)
# Downloads, days on a GPU, or another's file.
ELSEWHERE = ("cifar100", "=...", "a.pt")


def commands():
    """Page -> arguments of its commands of this program that no page before has."""
    demo = re.search(r"main\.py (.*quickstart.*)", (ROOT / "Makefile").read_text())[1]
    found, seen = {}, set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        given = [c.partition(" #")[0] for c in COMMAND.findall(text)]
        given = [demo if c.startswith("make demo") else c for c in given]
        given = [tuple(c.split()) for c in given]
        new = [c for c in dict.fromkeys(given) if c not in seen]
        seen.update(new)
        found[page.relative_to(ROOT).as_posix()] = new
    return found


def runs_here(arguments):
    """Whether what it needs is here."""
    return not any(word in given for word in ELSEWHERE for given in arguments)


RUN = [page for page, given in commands().items() if any(map(runs_here, given))]


def test_commands_on_the_pages_are_right_requests(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [c for of_page in commands().values() for c in of_page]
    flags = [c for c in given if c[0].startswith("--") and "=..." not in c[0]]
    assert len(flags) > 8
    for arguments in flags:
        assert parse(*arguments).workdir, arguments
    assert len(RUN) >= 6 and sum(map(runs_here, given)) >= 14


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
@pytest.mark.parametrize("page", RUN)
def test_commands_on_the_pages_run(page, tmp_path, monkeypatch, data_dir):
    """In the page's order and one folder, with two steps of narrow networks."""
    monkeypatch.chdir(tmp_path)
    given = list(filter(runs_here, commands()[page]))
    onnx = any(".onnx" in argument for command in given for argument in command)
    if onnx:
        pytest.importorskip("tf2onnx", reason="pip install -e '.[onnx]'")
    for index, name in enumerate("abc"):
        model = toys.classifier(seed=index)
        model.save(f"{name}.keras")
        if onnx:
            model(np.zeros((1, *toys.SHAPE), "float32"))  # or Keras refuses
            model.export(f"{name}.onnx", format="onnx", verbose=False)
    toys.image_folder(tmp_path / "images", toys.CLASS_NAMES)
    (tmp_path / "images" / "test" / "ant").rename(tmp_path / "pictures")
    (tmp_path / "images" / "test" / "ant").symlink_to(tmp_path / "pictures")
    for arguments in given:
        assert run_main(*shortened(arguments, data_dir)) == 0, arguments


def shortened(arguments, data_dir):
    """The same with few steps, and with models that are here."""
    given = [a for a in arguments if not a.startswith("--minutes")]
    if not given[0].startswith("--"):
        return given + ["--epochs=1"] * (given[0] == "make-example")
    if "predict" in given[0]:
        return given
    given += [flag for flag in TWO_STEPS if not flag.startswith("--data_dir")]
    given += [f"--data_dir={data_dir}", "--bank_size=64", "--max_trials=1"]
    given += ["--teacher_input=0..1", "--teacher_network=wrn10_1", "--num_teachers=2"]
    given += ["--student_steps=1", "--aggregator_epochs=2"]
    if any("labelled_samples" in argument for argument in given):
        given += ["--labelled_samples=4"]  # there are few images
    if any("three_models" in argument for argument in given):  # in their place
        known = (f"{own},{','.join(toys.CLASS_NAMES[1:])}" for own in "abc")
        given += ["--teachers=a.keras,b.keras,c.keras", "--minutes=0.1"]
        given += [f"--teacher_classes={';'.join(known)}", "--labelled_samples=0"]
    return given
