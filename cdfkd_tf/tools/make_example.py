"""Three small teachers and a folder of images, made with plain Keras.

cdfkd-tf make-example --folder=own

Writes scikit-learn's digits as 24x24 grey PNGs, FOLDER/images/{train,test}/<digit>/*,
and three different classifiers under FOLDER: `a.keras` returns logits for grey values
in [0, 1]; `b.keras` has a Rescaling inside and returns probabilities; `c.keras` is a
nested backbone inside a classifier. 1,437 images to learn from, 360 to measure on.
"""

import argparse
import pathlib
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.tools import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser("make-example", __doc__)
    parser.add_argument("folder", nargs="?", default="own", help="to write [own]")
    parser.add_argument("--folder", dest="named", help="the same")
    parser.add_argument("--epochs", type=int, default=30, help="of training [30]")
    parser.add_argument("--seed", type=int, default=0, help="of every draw [0]")
    return parser.run(_make, arguments)


def _make(options: argparse.Namespace) -> None:
    if options.epochs < 1 or options.seed < 0:
        raise RequestError(
            "--epochs must be at least 1 and --seed at least 0; got "
            f"{options.epochs} and {options.seed}."
        )
    folder = pathlib.Path(options.named or options.folder).expanduser()
    quiet_tensorflow()
    import keras

    from cdfkd_tf.tools.example_networks import SIDE, TEACHERS

    train, test = write_images(folder / "images", SIDE, options.seed)
    print(f"Images in {folder / 'images'}. Training three teachers, a minute or two:")
    for index, (name, build) in enumerate(TEACHERS.items()):
        keras.utils.set_random_seed(options.seed * 10 + index)
        model, scale, from_logits = build()
        model.compile(
            keras.optimizers.Adam(2e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
            metrics=["accuracy"],
        )
        images, labels = train
        model.fit(images * scale, labels, 64, epochs=options.epochs, verbose=0)
        images, labels = test
        accuracy = model.evaluate(images * scale, labels, verbose=0)[1]
        model.save(folder / f"{name}.keras")
        print(
            f"{folder / name}.keras: {accuracy:.2%} of {len(labels)} test images",
            flush=True,
        )
    files = ",".join(str(folder / f"{name}.keras") for name in TEACHERS)
    print(f"Now: cdfkd-tf --teachers={files} --image_folder={folder / 'images'}")


def write_images(
    folder: pathlib.Path, side: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Writes the PNGs; the same images in [0, 1] with labels, train and test.

    Args:
        folder: gets `train` and `test`, with a folder per digit.
        side: pixels of the square images.
        seed: of the split.

    Returns:
        For train and test, images `(n, side, side, 1)`, float32, and labels `(n,)`.
    """
    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)),
        test_size=360,
        stratify=digits.target,
        random_state=seed,
    )
    found = []
    for split, indices in zip(("train", "test"), parts):
        images = []
        for index in indices:
            small = Image.fromarray((digits.images[index] * 255 / 16).astype("uint8"))
            image = small.resize((side, side), Image.Resampling.BILINEAR)
            place = folder / split / str(digits.target[index])
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{index:04d}.png")
            images.append(np.asarray(image, "float32")[..., None] / 255)
        found.append((np.stack(images), digits.target[indices]))
    return found


if __name__ == "__main__":
    sys.exit(main())
