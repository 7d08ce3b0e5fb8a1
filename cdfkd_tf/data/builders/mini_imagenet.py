"""mini-ImageNet's 60,000 images of 100 classes, pooled and split for classification.

The files cannot be fetched by a program: ImageNet's licence must be accepted first.
The usual layout is `images/*.jpg` and `train.csv`, `val.csv`, `test.csv` with columns
`filename,label`, whose 64 + 16 + 20 classes are disjoint (Vinyals et al., NeurIPS 2016;
CSV files of Ravi and Larochelle, ICLR 2017).
"""

import csv
import pathlib

import tensorflow_datasets as tfds

from cdfkd_tf.data.builders.stratified import Examples, StratifiedBuilder
from cdfkd_tf.errors import RequestError

LISTS = ("train.csv", "val.csv", "test.csv")


class MiniImagenet(StratifiedBuilder):
    """All classes of mini-ImageNet, pooled."""

    NUM_CLASSES = None  # as many as the lists name

    def list_examples(self, dl_manager: tfds.download.DownloadManager) -> Examples:
        """See the base class.

        Raises:
            RequestError: files are missing or not as expected.
        """
        # Not dl_manager.manual_dir: that raises before the folder can be named.
        root = pathlib.Path(self.data_dir_root) / "downloads/manual/mini_imagenet"
        missing = [name for name in (*LISTS, "images") if not (root / name).exists()]
        if missing:
            raise RequestError(
                f"mini-ImageNet's files are put in place by hand. Expected {root} to "
                f"hold images/ and {', '.join(LISTS)} (columns filename,label); "
                f"missing: {', '.join(missing)}."
            )
        rows = sorted(row for name in LISTS for row in _read_list(root / name))
        classes = sorted({name for _, name in rows})
        examples = [
            (file, str(root / "images" / file), classes.index(name))
            for file, name in rows
        ]
        return examples, classes


def _read_list(file: pathlib.Path) -> list[tuple[str, str]]:
    """Pairs of file name and class; every named image exists."""
    with file.open(newline="") as lines:
        table = csv.DictReader(lines)
        if not {"filename", "label"} <= set(table.fieldnames or ()):
            raise RequestError(
                f"{file} needs the columns filename and label; it has "
                f"{', '.join(table.fieldnames or ['none'])}."
            )
        rows = [(row["filename"], row["label"]) for row in table]
    images = file.parent / "images"
    for name, _ in rows:
        if not (images / name).is_file():
            raise RequestError(
                f"{file} names {name}, and there is no {images / name}. Add the image, "
                "or take the line out."
            )
    return rows
