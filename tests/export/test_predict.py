"""`--action=predict`: image files in, a table and a CSV file out."""

import csv
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from cdfkd_tf import cli
from cdfkd_tf.data.image_files import read_image
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.export.format import FORMATS
from cdfkd_tf.export.run import describe
from cdfkd_tf.export.tflite import TfliteRunner
from tests.data.test_image_folder import photograph
from tests.export.small import NAMES, export_small, own_predictor, predictor_with
from tests.rows import rows


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A workdir with a predictor and two exported files, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("run")
    predictor = predictor_with("attention", "lenet", headers=3)
    predictor.save(folder / "predictor.keras")
    export_small(predictor, folder / "export", ("saved_model", "onnx", "tflite_int8"))
    pictures = folder / "pictures"
    (pictures / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.bmp"):
        pixels = rng.integers(0, 256, (11, 9, 3)).astype("uint8")
        Image.fromarray(pixels).save(pictures / name)
    (pictures / "notes.txt").write_text("no picture")
    return folder


def predict(folder, *more):
    arguments = ["main.py", "--action=predict", f"--workdir={folder}", *more]
    return cli.main(arguments, flags.FlagValues())


def rows_of(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_folder_is_classified_with_the_smallest_file(run_folder, capsys):
    assert predict(run_folder, f"--predict_input={run_folder / 'pictures'}") == 0
    printed = capsys.readouterr().out
    assert "student_int8.tflite" in printed and "3 images" in printed
    rows = rows_of(run_folder / "predictions.csv")
    files = [pathlib.Path(row["file"]).name for row in rows]
    assert files == ["a.png", "b.jpg", "c.bmp"]
    run = TfliteRunner(run_folder / "export/student_int8.tflite")
    for row in rows:
        probabilities = run(read_image(pathlib.Path(row["file"]), (8, 8, 1))[None])[0]
        best = probabilities.argmax()
        assert row["class"] == str(best)
        assert row["name"] == NAMES[best]
        assert float(row["probability"]) == pytest.approx(probabilities[best], abs=1e-4)


@pytest.mark.slow
def test_header_weights_are_shown_on_demand(run_folder, tmp_path):
    output = tmp_path / "here.csv"
    code = predict(
        run_folder,
        f"--predict_input={run_folder / 'pictures/a.png'}",
        f"--predict_model={run_folder / 'export/saved_model'}",
        f"--predict_output={output}",
        "--show_header_weights",
    )
    (row,) = rows_of(output)
    weights = [float(row[f"header_{header}"]) for header in range(3)]
    assert code == 0 and sum(weights) == pytest.approx(1, abs=0.01)


def test_bad_images_are_one_error_line_and_the_rest_is_written(
    run_folder, tmp_path, capsys
):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "bad.png").write_bytes(b"no image")
    (pictures / "cut.png").write_bytes(
        (run_folder / "pictures/a.png").read_bytes()[:90]
    )
    output = tmp_path / "out.csv"
    flags = (f"--predict_input={pictures}", f"--predict_output={output}")
    only_bad = predict(run_folder, *flags)
    error = capsys.readouterr().err
    assert only_bad == 2 and error.startswith("error: 2 of 2 files could not be read")
    assert error.count("\n") == 1 and not output.exists()
    Image.new("L", (8, 8)).save(pictures / "good.png")
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 90, 200)]
    frames[0].save(pictures / "moves.gif", save_all=True, append_images=frames[1:])
    Image.new("LA", (8, 8)).save(pictures / "clear.png")
    (pictures / ".hidden.png").write_bytes(b"no image")
    for name in ("notes.txt", "model.onnx"):
        (pictures / name).write_text("no picture")
    code = predict(run_folder, *flags)
    printed = capsys.readouterr()
    assert code == 1 and "2 of 5 files" in printed.err
    for name in ("bad.png (it is none of PNG", "cut.png (Truncated File Read)"):
        assert name in printed.err
    assert len(rows_of(output)) == 3
    assert "2 files are left out: their names do not end like images'" in printed.out
    assert "1 of 5 files hold several pictures" in printed.out
    assert "1 of 5 files have transparent parts, which become white" in printed.out


@pytest.mark.slow
def test_long_tables_are_cut_on_the_terminal_alone(run_folder, tmp_path, capsys):
    for number in range(43):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number:02}.png")
    os.rename(tmp_path / "00.png", os.fsencode(tmp_path) + b"/\xe9.png")  # Latin-1
    output = tmp_path / "out.csv"
    flags = (f"--predict_input={tmp_path}", f"--predict_output={output}")
    assert predict(run_folder, *flags) == 0
    printed = capsys.readouterr().out
    assert "... and 3 more" in printed and "43 images, by" in printed
    names = [pathlib.Path(row["file"]).name for row in rows_of(output)]
    assert len(names) == 43 and names[-1] == r"\udce9.png"
    assert predict(run_folder, f"--predict_input={tmp_path / '01.png'}") == 0
    (short,) = rows_of(run_folder / "predictions.csv")
    assert rows_of(output)[0].keys() == short.keys()


@rows("shorter_side", [0, 10])
def test_a_photograph_gets_the_same_probabilities_on_every_way(tmp_path, shorter_side):
    """Measured, predicted from each file, and classified as on a device."""
    file = tmp_path / "test/a/photo.jpg"
    file.parent.mkdir(parents=True)
    Image.fromarray(photograph(3, 375, 500)).save(file)
    shutil.copytree(file.parent, tmp_path / "test/b")  # one class alone is refused
    spec = plain_spec(
        "folder", (8, 8, 1), 4, folder=str(tmp_path), shorter_side=shorter_side
    )
    predictor = own_predictor(shape=(8, 8, 1))
    about = describe(spec, NAMES, method="", student="")
    formats = ("saved_model", "onnx", "tflite_float32")
    export_small(predictor, tmp_path / "export", formats, description=about)
    ((pixels, _),) = RealImages(spec).evaluation_pixels()
    np.testing.assert_array_equal(*pixels)
    expected = predictor.predict(pixels, verbose=0)[0]
    for name in formats:
        model = tmp_path / "export" / FORMATS[name].file
        output = tmp_path / f"{name}.csv"
        more = (f"--predict_model={model}", f"--predict_output={output}")
        assert predict(tmp_path, f"--predict_input={file}", *more) == 0
        (row,) = rows_of(output)
        assert row["class"] == str(expected.argmax())
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=2e-3)
    script = pathlib.Path(__file__).parents[2] / "experiments/edge/classify.py"
    answer = subprocess.run(
        [sys.executable, script, model, file],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    share = float(answer.split("%")[0].split()[-1]) / 100
    assert NAMES[expected.argmax()] in answer
    assert share == pytest.approx(expected.max(), abs=2e-3)


def test_wrong_requests_say_what_to_do(run_folder, tmp_path, capsys):
    for more, words in [
        ([], "needs --predict_input"),
        (["--predict_input=/nowhere"], "There is no /nowhere"),
        (["--predict_input={empty}"], "holds no image file"),
        (["--predict_input={a}", "--predict_model=/no.tflite"], "There is no model"),
        (["--predict_input={a}", "--predict_model={a}"], "Cannot read the model"),
        (["--predict_input={a}", "--workdir={empty}"], "holds no exported model"),
    ]:
        names = {"empty": tmp_path, "a": run_folder / "pictures/a.png"}
        assert predict(run_folder, *(flag.format(**names) for flag in more)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_picture_is_cropped_in_the_centre_where_the_data_set_was(tmp_path):
    pixels = np.zeros((20, 40, 3), "uint8")
    pixels[:, 10:30] = 255  # the centre square of the whole
    file = tmp_path / "wide.png"
    Image.fromarray(pixels).save(file)
    image = read_image(file, (8, 8, 3), shorter_side=10)
    assert image.shape == (8, 8, 3) and image.min() == 1
    assert read_image(file, (8, 8, 3)).min() == 0


@rows("name", ["student_int8.tflite", "student.onnx"])
def test_files_for_devices_are_run_without_tensorflow(run_folder, tmp_path, name):
    code = (
        "import sys\n"
        "from cdfkd_tf.cli import main\n"
        "code = main(['x', '--action=predict', *sys.argv[1:]])\n"
        "assert 'tensorflow' not in sys.modules and code == 0, code"
    )
    arguments = [
        f"--predict_input={run_folder / 'pictures'}",
        f"--predict_model={run_folder / 'export' / name}",
        f"--workdir={tmp_path}",
    ]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def test_the_device_example_says_the_same(run_folder, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    script = root / "experiments/edge/classify.py"
    assert len(script.read_text().splitlines()) < 60
    picture, model = "pictures/a.png", "export/student_int8.tflite"
    answer = subprocess.run(
        [sys.executable, script, run_folder / model, run_folder / picture],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    output = tmp_path / "ours.csv"
    predict(
        run_folder,
        f"--predict_input={run_folder / picture}",
        f"--predict_output={output}",
    )
    (row,) = rows_of(output)
    assert row["name"] in answer and f"{float(row['probability']):.1%}" in answer
