"""Recipes: flagfiles by name, also from a wheel, installed elsewhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

from cdfkd_tf import cli
from cdfkd_tf.errors import RequestError
from cdfkd_tf.recipes import find_recipe, recipes
from tests.rows import rows
from tests.toys import parse, run_main

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ("experiments", "cdfkd_tf", "main.py", "setup.py", "pyproject.toml")


def test_recipe_is_the_flagfile_wherever_it_is_called(tmp_path, monkeypatch):
    """Also what flagfiles of experiments/ name: another one, a search space."""
    monkeypatch.chdir(ROOT)
    expected = parse("--flagfile=experiments/digits/search.flags")
    monkeypatch.chdir(tmp_path)
    for given in (
        "--recipe=digits/search",
        "--flagfile=experiments/digits/search.flags",
    ):
        config = parse(given, "--seed=7")
        assert config.seed == 7 and config.num_teachers == expected.num_teachers
        assert pathlib.Path(config.search_space).read_text().startswith("#")
    assert find_recipe("quickstart") == find_recipe("digits/quickstart")


def test_recipe_list_names_each_run_and_what_it_is(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--recipe=list")
    lines = capsys.readouterr().out.splitlines()
    assert leaving.value.code == 0 and len(lines) == len(recipes())
    assert all(re.fullmatch(r"\S+ {2,}\S.*[.?]", line) for line in lines), lines


@rows("name, near", [("digits/quickstrat", "digits/quickstart"), ("kd", "cifar100/kd")])
def test_unknown_recipe_is_refused_with_the_nearest(name, near):
    with pytest.raises(RequestError, match=near):
        parse(f"--recipe={name}")


def test_first_word_is_a_step_or_a_tool(capsys):
    assert parse("report", "--workdir=x").action == "report"
    assert run_main("classify", "missing.tflite", "a.png") == 2
    assert run_main("import", "--network=resnet18") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert run_main("rapport") == 2
    assert "make-example" in capsys.readouterr().err


def test_no_argument_shows_the_short_page(capsys):
    assert run_main() == 0
    page = capsys.readouterr().out
    assert page == f"{cli.short_page()}\n" and max(map(len, page.splitlines())) <= 88
    assert "make-example" in page and "--minutes" in page and "--recipe" in page


QUIET = """
import cdfkd_tf
cdfkd_tf.distill
import tensorflow as tf
tf.constant(0)
"""


def test_import_from_python_prints_nothing():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, cwd=ROOT, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Wheel (of the sdist) and the programs of an environment that has only it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "runs")
    for name in (*SHARED, "README.md", "LICENSE", "MANIFEST.in"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    pip = [str(programs / "python"), "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "setuptools>=77"], check=True)
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    python = str(programs / "python")
    subprocess.run([python, "-c", build], check=True, cwd=source, stdout=-3)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    how = ("--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "wheel", *how, "-w", folder, unpacked], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
    # The libraries of these tests, but not what their own .pth files add.
    site = next((folder / "env/lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return wheel, programs


@pytest.mark.slow
def test_wheel_has_every_recipe_and_a_page_without_dead_links(installed):
    wheel, _ = installed
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        text = archive.read(metadata).decode()
    flagfiles = {f"cdfkd_tf/{file.relative_to(ROOT)}" for file in recipes().values()}
    assert flagfiles <= set(names) and "cdfkd_tf/report/page.css" in names
    assert not [name for name in names if name.startswith(("tests/", "experiments/"))]
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all(link.startswith("https://") for link in links)
    assert "Requires-Python: >=3.11" in text and "Project-URL: Paper" in text


@pytest.mark.slow
def test_wheel_alone_goes_from_example_to_report(installed, tmp_path):
    """In an empty folder, as somebody without the repository."""
    _, programs = installed
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def output_of(*arguments, program="cdfkd-tf"):
        command = [str(programs / program), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        lines = done.stderr.splitlines()
        ours = all(line.startswith("warning: ") for line in lines)
        assert done.returncode == 0 and ours, done.stderr
        return done.stdout

    where = "import cdfkd_tf; print(cdfkd_tf.__file__)"
    assert str(programs.parent) in output_of("-c", where, program="python")
    assert output_of("--version").startswith("cdfkd_tf 0.")
    assert "digits/quickstart" in output_of(
        "-m", "cdfkd_tf", "--recipe=list", program="python"
    )
    output_of("make-example", "own", "--epochs=1")
    output_of(
        "--teachers=own/a.keras,own/b.keras,own/c.keras",
        "--teacher_input=0..1,0..255,0..1",
        "--image_folder=own/images",
        "--workdir=run",
        *("--epochs=1", "--steps_per_epoch=2", "--batch_size=8", "--bank_size=64"),
    )
    output_of("predict", "--workdir=run", "--predict_input=own/images/test/0")
    picture = next((tmp_path / "own/images/test/3").iterdir())
    table = output_of("classify", "run/export/student_int8.tflite", str(picture))
    assert "1 images, by run/export/student_int8.tflite\n" in table
    assert "run/report.html" in output_of("report", "--workdir=run")
