"""Distillation from Python with NumPy arrays alone: two teachers, no flag, no file.

python experiments/own_teachers/from_python.py

Two classifiers learn scikit-learn's 8x8 digits, then a student learns from the
classifiers alone, without the digits. About two minutes on two CPU cores.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import cdfkd_tf


def teacher(filters: int, seed: int, x, y) -> keras.Model:
    """Any Keras classifier will do."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for _ in range(3):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    model.fit(x, y, batch_size=64, epochs=25, verbose=0)
    return model


def main(epochs: int = 20, steps_per_epoch: int = 20) -> None:
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    x, test_x, y, test_y = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    teachers = [teacher(48, 0, x, y), teacher(64, 1, x, y)]

    result = cdfkd_tf.distill(
        teachers,
        method="cdfkd_mfs",
        student="wrn10_1",
        student_width=0.5,
        generator_width=0.5,
        latent_size=64,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=32,
        student_learning_rate=0.1,
        nesterov=True,
        schedule="cosine",
        generator_learning_rate=0.005,
        generator_beta1=0.5,
        verbose=2,
    )
    measured = result.evaluate(test_x, test_y)
    print("teachers' mean", measured["teacher_ensemble"])
    print("student", measured["student"])

    few = np.random.default_rng(0).permutation(len(y))[:50]
    print(result.fit_aggregator(x[few], y[few]))
    print(result.evaluate(test_x, test_y)["aggregator"])
    for entry in result.export(result.workdir / "export"):
        print(entry["format"], entry["bytes"], "bytes, agreement", entry["agreement"])


if __name__ == "__main__":
    main()
