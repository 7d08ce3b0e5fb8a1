"""Pictures and folders as people have them: read right, or refused with the reason."""

import collections
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cdfkd_tf.data.builders.image_folder import ImageFolder, folder_spec
from cdfkd_tf.data.image_files import image_form, open_image, read_image, unreadable
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.errors import RequestError
from tests import toys
from tests.rows import rows

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
COLOURS = np.stack([RAMP, RAMP.T, 1 - RAMP], axis=-1)
BYTES = np.rint(255 * COLOURS).astype("uint8")
PICTURE = Image.fromarray(BYTES)


def with_alpha(pixels):
    """The same, more and more opaque from the first row to the last."""
    return np.dstack([pixels, 255 * np.round(RAMP, 1)]).astype("uint8")


@rows(
    "ending, dtype, largest",
    [
        ("tif", "float32", 1),
        ("tif", "float32", 255),
        ("tif", "int32", 255),
        ("tif", "int32", 65535),
        ("tif", "uint16", 255),
        ("tif", "uint16", 65535),
        ("png", "uint16", 255),
        ("png", "uint16", 65535),
    ],
)
def test_open_image_knows_the_range_of_wide_numbers(tmp_path, ending, dtype, largest):
    file = tmp_path / f"a.{ending}"
    Image.fromarray((RAMP * largest).astype(dtype)).save(file)
    np.testing.assert_allclose(read_image(file, (8, 8, 1))[..., 0], RAMP, atol=1 / 250)
    np.testing.assert_allclose(read_image(file, (8, 8, 3))[..., 2], RAMP, atol=1 / 250)


LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


@rows("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_read_image_goes_by_content_not_by_name(tmp_path, kind):
    file = tmp_path / "a.jpg"
    PICTURE.save(file, kind, **LOSSLESS.get(kind, {}))
    np.testing.assert_allclose(read_image(file, (8, 8, 3)), COLOURS, atol=0.04)


@pytest.mark.slow
@rows(
    "mode, ending", [("P", "png"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("RGBX", "tif")]
)
def test_read_image_takes_colours_however_they_are_stored(tmp_path, mode, ending):
    file = tmp_path / f"a.{ending}"
    how = {"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}
    PICTURE.convert(mode, **how).save(
        file, **(LOSSLESS["JPEG"] if ending == "jpg" else {})
    )
    np.testing.assert_allclose(read_image(file, (8, 8, 3)), COLOURS, atol=0.04)


def test_open_image_puts_transparent_parts_on_white(tmp_path):
    notes = collections.Counter()
    alpha = np.round(RAMP, 1)[..., None]
    for name, pixels, expected in (
        ("rgba.png", with_alpha(BYTES), COLOURS),
        ("la.png", with_alpha(BYTES[..., 0]), COLOURS[..., :1]),
        ("rgba.webp", with_alpha(BYTES), COLOURS),
    ):
        Image.fromarray(pixels).save(tmp_path / name, lossless=True)
        channels = expected.shape[-1]
        found = read_image(tmp_path / name, (8, 8, channels), notes=notes)
        np.testing.assert_allclose(found, expected * alpha + 1 - alpha, atol=0.02)
    clear = Image.new("P", (8, 8))  # one colour of the palette is transparent
    clear.save(tmp_path / "palette.gif", transparency=0)
    assert (
        open_image(tmp_path / "palette.gif", 3, notes).getextrema() == ((255,) * 2,) * 3
    )
    assert notes == {"have transparent parts, which become white": 4}


@pytest.mark.slow
def test_open_image_turns_pictures_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, turn it to the right
    file = tmp_path / "a.png"
    Image.fromarray(BYTES[:4]).save(file, exif=exif)
    expected = np.rot90(BYTES[:4], -1)
    np.testing.assert_array_equal(np.asarray(open_image(file, 3)), expected)
    assert image_form(file) == (8, 4, 3)


@pytest.mark.slow
@rows("ending", ["gif", "tif", "png", "webp"])
def test_open_image_takes_the_first_of_several_and_notes_it(tmp_path, ending):
    notes, file = collections.Counter(), tmp_path / f"a.{ending}"
    others = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    PICTURE.save(file, save_all=True, append_images=others, **LOSSLESS["WEBP"])
    np.testing.assert_allclose(np.asarray(open_image(file, 3, notes)), BYTES, atol=8)
    assert notes == {"hold several pictures: the first one counts": 1}


@pytest.mark.slow
def test_open_image_of_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(RAMP > 0.5).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png", (8, 8, 1))[..., 0], RAMP > 0.5
    )


def deep_tiff(pixels):
    """A TIFF of `(height, width, 3)` uint16 in the fewest tags."""
    data = pixels.astype("<u2").tobytes()
    height, width, _ = pixels.shape
    after = 8 + len(data) + 2 + 9 * 12 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, after), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height),
            (279, 4, 1, len(data))]  # fmt: skip
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return (
        head
        + data
        + struct.pack("<H", 9)
        + table
        + bytes(4)
        + struct.pack("<3H", 16, 16, 16)
    )


@pytest.mark.slow
def test_open_image_of_deep_colours_takes_the_upper_half(tmp_path):
    file = tmp_path / "a.tif"
    file.write_bytes(deep_tiff(65535 * COLOURS))
    np.testing.assert_allclose(read_image(file, (8, 8, 3)), COLOURS, atol=1 / 250)
    file.write_bytes(deep_tiff(255 * COLOURS))
    with pytest.raises(ValueError, match="16 bits per colour, of which the upper 8"):
        open_image(file, 3)


@pytest.mark.slow
@rows(
    "pixels, words",
    [
        (RAMP - 1, "values are -1 to 0, expected 0..255"),
        (70000 * RAMP, "values are 0 to 70000"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "values are nan to nan"),
    ],
)
def test_open_image_refuses_numbers_of_unknown_range(tmp_path, pixels, words):
    Image.fromarray(pixels.astype("float32")).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=words):
        open_image(tmp_path / "a.tif", 1)


def test_open_image_refuses_what_is_none_or_not_whole(tmp_path):
    PICTURE.save(tmp_path / "whole.jpg")
    PICTURE.save(tmp_path / "drawing.eps")
    for content, words in (
        (b"", "it is empty"),
        (b"<html>not found</html>", "none of PNG, JPEG"),
        ((tmp_path / "drawing.eps").read_bytes(), "none of PNG, JPEG"),
        ((tmp_path / "whole.jpg").read_bytes()[:-80], "[Tt]runcated"),
    ):
        file = tmp_path / "a.jpg"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            open_image(file, 3)


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def wrong_checksum(file):
    content = bytearray(file.read_bytes())
    end = content.index(b"IEND") - 4
    content[end - 4 : end] = struct.pack(">I", zlib.crc32(b"another"))
    file.write_bytes(content)


def not_a_number(file):
    Image.fromarray(np.full((4, 4), np.nan, "float32")).save(file, "TIFF")


def large_numbers(file):
    Image.fromarray(np.full((4, 4), 70_000, "int32")).save(file, "TIFF")


DAMAGES = {
    "a.jpg": (cut, "runcated"),
    "b.png": (cut, "Truncated File Read"),
    "c.png": (wrong_checksum, "checksum"),
    "d.tif": (not_a_number, "are nan to nan"),
    "e.tif": (large_numbers, "are 70000 to 70000"),
    "f.png": (lambda file: file.write_text("hello"), "none of PNG"),
    "g.png": (lambda file: file.write_bytes(b""), "it is empty"),
    "h.png": (lambda file: file.unlink(), "No such file"),
}


def test_unreadable_names_each_damaged_picture_and_why(tmp_path):
    files = [tmp_path / name for name in ("good.png", *DAMAGES)]
    for file in files:
        PICTURE.save(file)
    for name, (damage, _) in DAMAGES.items():
        damage(tmp_path / name)
    found = unreadable(files)
    assert len(found) == len(DAMAGES)
    for line, (name, (_, words)) in zip(found, DAMAGES.items()):
        assert line.startswith(f"{tmp_path / name} (") and words in line, line


# Folders.


def test_folder_reads_every_kind_and_skips_what_programs_leave(tmp_path):
    root = toys.image_folder(tmp_path / "own", per_class=1)
    PICTURE.save(root / "test/cat/1.webp", lossless=True)
    PICTURE.save(root / "test/cat/2.TIF")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        for place in (root / "test" / name, root / "test/cat" / name, root / name):
            place.mkdir()
            PICTURE.save(place / "0.png")
    for name in (".DS_Store", "Thumbs.db", "._0.png"):
        (root / "test/cat" / name).write_text("no image")
    (root / "test/cat/notes.txt").write_text("no image")
    folder = ImageFolder(str(root))
    assert folder.class_names == ["cat", "dog", "owl"]
    names = [file.name for file, name in folder.splits["test"] if name == "cat"]
    assert names == ["0.png", "1.webp", "2.TIF"] and folder.left_out == ["notes.txt"]


@pytest.mark.slow
def test_folder_follows_links_and_nested_folders(tmp_path):
    """`val` does for `test`; a link in a circle ends."""
    root = toys.image_folder(tmp_path / "own", per_class=2)
    (root / "test").rename(root / "val")
    (root / "train/cat").rename(tmp_path / "elsewhere")
    (root / "train/cat").symlink_to(tmp_path / "elsewhere")
    (root / "train/dog/deep/er").mkdir(parents=True)
    (root / "train/dog/0.png").rename(root / "train/dog/deep/er/0.png")
    (root / "train/dog/deep/round").symlink_to(root / "train/dog")
    os.rename(root / "train/owl/1.png", os.fsencode(root) + b"/train/owl/\xe9.png")
    folder = ImageFolder(str(root))
    classes = [name for _, name in folder.splits["train"]]
    assert classes == ["cat"] * 2 + ["dog"] * 2 + ["owl"] * 2
    assert len(folder.splits["test"]) == 6
    images = RealImages(folder_spec(str(root), (8, 8, 3)))
    (pixels, labels) = next(iter(images.evaluation_pixels(9)))
    images.write_splits(tmp_path / "splits")  # names in any encoding
    assert b"train/owl/\xe9.png\towl" in (tmp_path / "splits/train.txt").read_bytes()
    assert images.training(6, seed=0)[1] == 1
    assert np.bincount(labels).tolist() == [2, 2, 2]
    means = [pixels[labels == label].mean() for label in range(3)]
    np.testing.assert_allclose(means, np.array([60, 120, 180]) / 255, atol=0.06)


def test_folder_has_colours_if_any_of_its_pictures_has(tmp_path):
    root = toys.image_folder(tmp_path, per_class=1)
    assert folder_spec(str(root)).image_shape == (10, 8, 1)
    PICTURE.save(root / "train/owl/1.png")
    assert folder_spec(str(root)).image_shape == (10, 8, 3)  # the first one's size
    assert folder_spec(str(root), channels=1).image_shape == (10, 8, 1)
    (root / "test/cat/0.png").write_text("no image")
    (root / "train/cat/0.png").write_text("no image")  # named when all are decoded
    assert folder_spec(str(root)).image_shape == (10, 8, 3)


@rows(
    "make, words",
    [
        (lambda root: (root / "cat").mkdir(), "found cat"),
        (lambda root: (root / "train").mkdir(), "found nothing"),
        (lambda root: PICTURE.save(root / "a.png"), "found a.png"),
        (lambda root: toys.image_folder(root, ["cat"]), "holds one class, cat"),
        (
            lambda root: (
                toys.image_folder(root, ["cat", "dog"]).joinpath("test/emu").mkdir()
            ),
            "test/emu holds no image",
        ),
    ],
)
def test_folder_of_another_form_is_one_sentence(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(RequestError) as refused:
        ImageFolder(str(tmp_path))
    assert words in str(refused.value) and "\n" not in str(refused.value)
