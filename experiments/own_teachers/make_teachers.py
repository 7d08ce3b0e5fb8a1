"""Three teachers and a folder of images, made with plain Keras: no cdfkd_tf here.

python experiments/own_teachers/make_teachers.py --folder=/tmp/own

Writes scikit-learn's digits as 24x24 grey PNGs, FOLDER/images/{train,test}/<digit>/*,
and three different classifiers under FOLDER: `a.keras` returns logits for grey values
in [0, 1]; `b.keras` has a Rescaling inside and returns probabilities;
`c.keras` is a nested backbone inside a classifier. 1,437 images to learn from, 360 to
measure on.
"""

import argparse
import pathlib

import keras
import numpy as np
from keras import layers
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 24


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    folder = pathlib.Path(arguments.folder)
    train, test = write_images(folder / "images", arguments.seed)
    for index, (name, build) in enumerate(TEACHERS.items()):
        keras.utils.set_random_seed(arguments.seed * 10 + index)
        model, scale, from_logits = build()
        model.compile(
            keras.optimizers.Adam(2e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
            metrics=["accuracy"],
        )
        images, labels = train
        model.fit(
            images * scale, labels, 64, epochs=arguments.epochs, shuffle=True, verbose=0
        )
        images, labels = test
        accuracy = model.evaluate(images * scale, labels, verbose=0)[1]
        model.save(folder / f"{name}.keras")
        print(f"{name}.keras: {accuracy:.2%} of {len(labels)} test images")


def write_images(folder: pathlib.Path, seed: int):
    """The PNGs; returns the same images in [0, 1] with labels, train and test."""
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
            image = small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            place = folder / split / str(digits.target[index])
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{index:04d}.png")
            images.append(np.asarray(image, "float32")[..., None] / 255)
        found.append((np.stack(images), digits.target[indices]))
    return found


def conv_block(tensor, filters, stride=1):
    tensor = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(tensor)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(tensor))


def logits_for_unit_pixels():
    """Functional, grey values in [0, 1] to logits."""
    image = keras.Input((SIDE, SIDE, 1))
    tensor = conv_block(conv_block(image, 24), 32, 2)
    tensor = conv_block(conv_block(tensor, 48, 2), 64)
    tensor = layers.GlobalAveragePooling2D()(tensor)
    return keras.Model(image, layers.Dense(10)(tensor)), 1, True


def probabilities_for_bytes():
    """Sequential, Rescaling inside: grey values in [0, 255] to probabilities."""
    model = keras.Sequential([keras.Input((SIDE, SIDE, 1)), layers.Rescaling(1 / 255)])
    for filters in (24, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(10, activation="softmax"))
    return model, 255, False


def nested_backbone():
    """A residual backbone as one layer of a classifier, as transfer learning has it."""
    image = keras.Input((None, None, 1))
    tensor = conv_block(image, 32, 2)
    for _ in range(2):
        inner = conv_block(conv_block(tensor, 32), 32)
        tensor = layers.Add()([tensor, inner])
    backbone = keras.Model(image, conv_block(tensor, 64, 2), name="backbone")
    outer = keras.Input((SIDE, SIDE, 1))
    tensor = layers.GlobalAveragePooling2D()(backbone(outer))
    return keras.Model(outer, layers.Dense(10)(tensor)), 1, True


TEACHERS = {
    "a": logits_for_unit_pixels,
    "b": probabilities_for_bytes,
    "c": nested_backbone,
}

if __name__ == "__main__":
    main()
