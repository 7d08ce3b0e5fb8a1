"""Flagfiles as editors and shells write them: read, or refused in one sentence."""

import codecs

import pytest

from cdfkd_tf.errors import RequestError
from tests.rows import rows
from tests.toys import parse

TEXT = "# größte Läufe\r\n// another\r\n\r\n  --epochs=7  \r\n--workdir=runs/Größe\r\n"


@rows(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),  # PowerShell's >
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("latin-1"),
        TEXT.replace("\r\n", "\n").encode("cp1252"),
        TEXT.replace("\r\n", "\r").encode(),
    ],
)
def test_flagfile_is_read_in_every_encoding(tmp_path, content):
    file = tmp_path / "größe.flags"
    file.write_bytes(content)
    config = parse(f"--flagfile={file}", "--seed=2")
    assert (config.epochs, config.workdir, config.seed) == (7, "runs/Größe", 2)
    assert parse("--flagfile", str(file)).epochs == 7


def test_flagfiles_within_flagfiles_are_read_in_their_place(tmp_path, monkeypatch):
    """Beside the file that names them; a circle ends; `~` is the user's folder."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.flags").write_text(
        "--epochs=1\n--seed=1\n--flagfile=sub/b.flags\n--batch_size=4\n"
    )
    (tmp_path / "sub/b.flags").write_text(
        f"--seed=5\n--batch_size=3\n--flagfile=c.flags\n--flagfile={tmp_path}/a.flags\n"
    )
    (tmp_path / "sub/c.flags").write_text("--latent_size=9\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse("--flagfile=~/a.fl*")
    values = (config.epochs, config.seed, config.batch_size, config.latent_size)
    assert values == (1, 5, 4, 9)


@rows(
    "make, words",
    [
        (lambda file: None, "No such file"),
        (lambda file: file.mkdir(), "Is a directory"),
        (lambda file: file.write_bytes(bytes(range(256))), "is no text"),
        (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "is no text"),
        (lambda file: file.write_text("--epochs 3\n"), "'epochs 3'"),
        (lambda file: file.write_text("epochs=3\n"), "Unexpected argument 'epochs=3'"),
        (
            lambda file: file.write_text("--student_taps=a\n"),
            "--student_feature_layers",
        ),
    ],
)
def test_flagfile_of_another_kind_is_one_sentence(tmp_path, make, words):
    file = tmp_path / "a.flags"
    make(file)
    with pytest.raises(RequestError) as refused:
        parse(f"--flagfile={file}")
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_paths_in_flags_may_have_a_tilde_and_wildcards(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("b.keras", "a.keras", "c.h5"):
        (tmp_path / name).touch()
    (tmp_path / "my pictures").mkdir()
    config = parse("--teachers=~/?.keras, c.h5,", "--workdir=~/run", "--dataset=none")
    assert config.teachers == (f"{tmp_path}/a.keras", f"{tmp_path}/b.keras", "c.h5")
    assert config.workdir == f"{tmp_path}/run"
    folder = parse("--dataset=folder", "--image_folder=my*").image_folder
    assert folder == "my pictures"
    for flag, words in [
        ("--teachers=~/x*.keras", r"x\*\.keras matches nothing; expected files"),
        ("--flagfile=*.flags", "flagfile=.*matches nothing; expected one path"),
        ("--image_folder=?.keras", "matches a.keras, b.keras; expected one path"),
    ]:
        with pytest.raises(RequestError, match=words):
            parse("--dataset=folder", flag)
