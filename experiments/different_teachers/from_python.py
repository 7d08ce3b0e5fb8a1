"""Three classifiers of different digits become one of all ten, from Python.

python experiments/different_teachers/from_python.py

Each knows three or four classes of scikit-learn's 8x8 digits, by name; the student
learns all ten without a digit. About three minutes on two CPU cores.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import cdfkd_tf

KNOWN = [["0", "1", "2", "3"], ["3", "4", "5", "6"], ["6", "7", "8", "9"]]


def classifier(names: list[str], seed: int, x, y) -> keras.Model:
    """Any Keras classifier will do; its outputs are in the order of `names`."""
    keras.utils.set_random_seed(seed)
    mine = np.isin(y, list(map(int, names)))
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for _ in range(3):
        model.add(layers.Conv2D(48, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(len(names)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    labels = np.searchsorted(list(map(int, names)), y[mine])
    model.fit(x[mine], labels, batch_size=64, epochs=25, verbose=0)
    return model


def main(minutes: float = 1.0) -> None:
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    x, test_x, y, test_y = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    models = [classifier(names, seed, x, y) for seed, names in enumerate(KNOWN)]

    result = cdfkd_tf.distill(
        list(zip(models, KNOWN)), teacher_input="0..1", minutes=minutes, verbose=2
    )
    measured = result.evaluate(test_x, test_y)
    print("the rule", measured["teacher_ensemble"])
    print("student, over all ten and among one teacher's", measured["student"])

    few = np.random.default_rng(0).permutation(len(y))[:50]
    print(result.fit_aggregator(x[few], y[few], kind="best"))
    print(result.evaluate(test_x, test_y)["aggregator"])


if __name__ == "__main__":
    main()
