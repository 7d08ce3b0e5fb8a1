"""mini-ImageNet's 60,000 images of 100 classes, pooled and split for classification.

The files cannot be fetched by a program: ImageNet's licence must be accepted first.
The usual layout is `images/*.jpg` and `train.csv`, `val.csv`, `test.csv` with columns
`filename,label`, whose 64 + 16 + 20 classes are disjoint (Vinyals et al., NeurIPS 2016;
CSV files of Ravi and Larochelle, ICLR 2017).
"""

import csv
import pathlib

import tensorflow_datasets as tfds

from cdfkd_tf.data.sampling import stratified_split
from cdfkd_tf.errors import RequestError

LISTS = ("train.csv", "val.csv", "test.csv")


class MiniImagenet(tfds.core.GeneratorBasedBuilder):
    """100 classes, `train` and `test`, 80/20 stratified over sorted file names."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="mini-ImageNet, all classes pooled, 80/20 stratified split.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(num_classes=None),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://arxiv.org/abs/1606.04080",
        )

    def _split_generators(self, dl_manager):
        # Not dl_manager.manual_dir: that raises before the folder can be named.
        root = pathlib.Path(self.data_dir_root) / "downloads/manual/mini_imagenet"
        missing = [name for name in (*LISTS, "images") if not (root / name).exists()]
        if missing:
            raise RequestError(
                f"mini-ImageNet's files are put in place by hand. Expected {root} to "
                f"hold images/ and {', '.join(LISTS)} (columns filename,label); "
                f"missing: {', '.join(missing)}."
            )
        examples = sorted(
            example for name in LISTS for example in _read_list(root / name)
        )
        classes = sorted({label for _, label in examples})
        self.info.features["label"].names = classes
        labels = [classes.index(label) for _, label in examples]
        return {
            split: self._generate_examples(root / "images", examples, indices)
            for split, indices in stratified_split(labels).items()
        }

    def _generate_examples(self, images, examples, indices):
        for index in indices:
            name, label = examples[index]
            image = {"image": str(images / name), "label": label, "file_name": name}
            yield name, image


def _read_list(file: pathlib.Path) -> list[tuple[str, str]]:
    """Pairs of file name and class; every named image exists."""
    with file.open(newline="") as lines:
        table = csv.DictReader(lines)
        if not {"filename", "label"} <= set(table.fieldnames or ()):
            raise RequestError(
                f"{file} needs the columns filename and label; it has "
                f"{', '.join(table.fieldnames or ['none'])}."
            )
        examples = [(row["filename"], row["label"]) for row in table]
    images = file.parent / "images"
    for name, _ in examples:
        if not (images / name).is_file():
            raise RequestError(
                f"{file} names {name}, and there is no {images / name}. Add the image, "
                "or take the line out."
            )
    return examples
