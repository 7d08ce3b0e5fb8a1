"""What is refused before the first costly step, and what defaults follow teachers."""

import json
import os
import shutil

import keras
import pytest
from keras import layers
from PIL import Image

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.fingerprint import fingerprint
from cdfkd_tf.pipeline.check import check
from cdfkd_tf.pipeline.steps import Run
from tests import toys
from tests.toys import parse, run_main


def without(flags, *names):
    return [f for f in flags if not f.startswith(tuple(f"--{name}=" for name in names))]


@pytest.fixture
def images(toy_files, tmp_path):
    return shutil.copytree(toy_files.images, tmp_path / "images")


def refused(capsys, *flags):
    """The message of a request that no step was begun for."""
    capsys.readouterr()
    assert run_main(*flags) == 2
    printed = capsys.readouterr()
    assert "-- " not in printed.out
    (line,) = [x for x in printed.err.splitlines() if not x.startswith("warning:")]
    return line


def test_pictures_that_cannot_be_read_are_named_in_one_message(
    toy_files, images, tmp_path, capsys
):
    """All of them; once read, they are not decoded again until one changes."""
    flags = (*without(toy_files.with_data, "image_folder"), f"--image_folder={images}")
    flags += (f"--workdir={tmp_path / 'run'}",)
    good = (images / "train/ant/0.png").read_bytes()
    (images / "train/ant/0.png").write_bytes(good[:-20])
    (images / "test/owl/1.png").write_text("no picture")
    line = refused(capsys, *flags)
    assert "2 of 48 image files cannot be read: " in line
    assert "train/ant/0.png (" in line and "test/owl/1.png (it is none" in line

    def again(*steps):
        check(Run(parse(*flags)), steps or ["train_teachers"])

    for number in range(12):
        (images / f"test/owl/{number}.png").write_text("no picture")
    with pytest.raises(RequestError) as many:
        again()
    assert str(many.value).count(".png (") == 10 and " ..." in str(many.value)
    shutil.rmtree(images / "test/owl")
    shutil.copytree(toy_files.images / "test/owl", images / "test/owl")
    (images / "train/ant/0.png").write_bytes(good)
    (images / "train/ant/notes.txt").write_text("a note")
    again()
    assert "as no images: 1 (notes.txt)" in capsys.readouterr().out
    file = images / "train/owl/0.png"
    state = file.stat()
    file.write_bytes(b"x" * state.st_size)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    again()  # looks as it did: not opened
    os.utime(file)
    for step in ("train_teachers", "evaluate"):
        with pytest.raises(RequestError, match=r"train/owl/0\.png \(it is none"):
            again(step)


def test_images_have_the_form_that_the_teachers_take(toy_files, images, tmp_path):
    """Pictures of 10x8 with colours, of which the first one is grey; no size given."""
    Image.new("RGB", (30, 20), (200, 10, 10)).save(images / "test/owl/red.png")
    flags = without(toy_files.with_data, "image_folder", "image_shape", "teachers")
    flags += [f"--image_folder={images}"]
    for shapes, expected in [
        ([(8, 8, 1), (8, 8, 1)], (8, 8, 1)),
        ([(None, None, 1), (20, 12, None)], (20, 12, 1)),
        ([(16, 16, 1), (8, 8, 3)], (16, 16, 3)),
        ([(10, 13, 3)], (10, 13, 3)),
    ]:
        for file in tmp_path.glob("?.keras"):
            file.unlink()
        for index, shape in enumerate(shapes):
            model = toys.classifier((*shape[:2], shape[2] or 1), seed=index)
            model.save(tmp_path / f"{index}.keras")
        teachers = f"--teachers={tmp_path}/?.keras"
        assert Run(parse(*flags, teachers)).spec.image_shape == expected
        none = (*without(flags, "image_folder"), "--dataset=none", teachers)
        assert Run(parse(*none)).spec.image_shape == expected
    open_size = toys.classifier((None, None, 3), seed=0)
    open_size.save(tmp_path / "0.keras")
    assert Run(parse(*flags, teachers)).spec.image_shape == (10, 8, 3)  # as the first


def test_teachers_that_tell_no_size_ask_for_it(toy_files, tmp_path, capsys):
    toys.classifier((None, None, 3), seed=0).save(tmp_path / "open.keras")
    flags = without(toy_files.without_data, "image_shape", "teachers", "student")
    flags += [f"--teachers={tmp_path}/open.keras,", f"--workdir={tmp_path}/run"]
    assert "Give --image_shape=height,width" in refused(capsys, *flags)


def test_classes_are_listed_where_they_are_not_as_many(
    toy_files, images, tmp_path, capsys
):
    shutil.rmtree(images / "train/owl")
    shutil.rmtree(images / "test/owl")
    flags = (*without(toy_files.with_data, "image_folder"), f"--image_folder={images}")
    line = refused(capsys, *flags, f"--workdir={tmp_path / 'run'}")
    assert "answers 4 classes; --dataset=folder has 3 (ant, bee, cat)" in line


def test_a_student_that_no_format_takes_is_refused(toy_files, tmp_path, capsys):
    image = keras.Input(toys.SHAPE)
    maps = layers.Conv2D(toys.WIDTH, 3, strides=2, padding="same")(image)
    odd = keras.ops.erfinv(layers.BatchNormalization()(maps))
    keras.Model(image, layers.BatchNormalization()(odd)).save(tmp_path / "odd.keras")
    flags = (*toy_files.without_data, f"--student={tmp_path / 'odd.keras'}")
    flags += (f"--workdir={tmp_path / 'run'}", "--export_formats=tflite_float32")
    assert "cannot be exported as tflite_float32" in refused(capsys, *flags)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_headers_that_cannot_be_are_refused_before_teachers_are_trained(
    data_dir, tmp_path, capsys
):
    flags = (*toys.NETWORKS, "--dataset=digits", f"--data_dir={data_dir}")
    flags += ("--teacher_network=lenet", "--student=lenet", "--num_teachers=2")
    flags += (f"--workdir={tmp_path}", "--student_headers=single")
    assert "1 headers and there are 2 teachers" in refused(capsys, *flags)


# Runs that cannot be mixed up.


@pytest.fixture
def own(toy_files, tmp_path):
    """Flags of a run from two own teachers' files."""
    for index, file in enumerate(toy_files.teachers):
        shutil.copy(file, tmp_path / f"own_{index}.keras")
    flags = without(toy_files.without_data, "teachers")
    flags += [f"--teachers={tmp_path}/own_?.keras", f"--workdir={tmp_path / 'run'}"]
    return [*flags, "--epochs=1"]


@pytest.mark.slow
def test_a_teacher_that_was_replaced_is_named(own, tmp_path, capsys):
    """Also in a finished run; saved again, it is the same; --noresume takes it."""
    model = toys.classifier(seed=5)
    model.save(tmp_path / "own_1.keras")
    assert run_main(*own) == 0
    before = json.loads((tmp_path / "run/results.json").read_text())
    for entry in before["teachers"]:
        assert entry["fingerprint"] == fingerprint(entry["file"])
    model.save(tmp_path / "own_1.keras")
    capsys.readouterr()
    assert run_main(*own) == 0
    assert "Nothing to do" in capsys.readouterr().out
    toys.classifier(seed=7).save(tmp_path / "own_1.keras")
    for more in ((), ("--action=evaluate",), ("--action=evaluate", "--noresume")):
        line = refused(capsys, *own, *more)
        assert "own_1.keras was replaced since" in line and "--noresume" in line
    progress = (tmp_path / "run/progress.json").read_text()
    interrupted = json.loads(progress)
    interrupted["distill"]["done"] = False
    (tmp_path / "run/progress.json").write_text(json.dumps(interrupted))
    assert "own_1.keras was replaced" in refused(capsys, *own, "--action=distill")
    assert json.loads((tmp_path / "run/results.json").read_text()) == before
    assert run_main(*own, "--action=distill", "--noresume") == 0 == run_main(*own)
    after = json.loads((tmp_path / "run/results.json").read_text())
    assert after["student"]["agreement"] != before["student"]["agreement"]


@pytest.mark.slow
def test_teachers_trained_anew_are_not_mixed_with_the_old_student(
    toy_files, tmp_path, capsys
):
    """Their files lie in the workdir; the record of the distillation was dropped."""
    flags = without(toy_files.with_data, "teachers", "teacher_input", "student")
    flags += [f"--workdir={tmp_path / 'run'}", "--num_teachers=1", "--student=lenet"]
    flags += ["--teacher_network=lenet", "--student_loss=feature=0", "--epochs=1"]
    flags += ["--image_shape=16,16,1", "--teacher_epochs=1", "--generator_loss=bn=0"]
    flags += ["--export_formats="]
    assert run_main(*flags) == 0
    more = (*flags, "--seed=3")
    assert run_main(*more, "--action=train_teachers", "--noresume") == 0
    assert "teachers/teacher_0.keras was replaced" in refused(capsys, *more)
