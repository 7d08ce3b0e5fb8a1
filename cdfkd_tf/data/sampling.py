"""Which examples are chosen: stratified splits and choices balanced over classes."""

from collections.abc import Sequence

import numpy as np

TEST_SHARE = 0.2
SPLIT_SEED = 1


def stratified_split(labels: Sequence[int]) -> dict[str, list[int]]:
    """The examples of `train` and of `test`: 80 to 20, seeded, stratified.

    Args:
        labels: class of each example, in a sorted order: so that the split does not
            depend on the file system.

    Returns:
        Split -> sorted places in `labels`. A class of `n` gives about `n / 5` to test.
    """
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=TEST_SHARE,
        random_state=SPLIT_SEED,
        stratify=labels,
    )
    return {"train": sorted(train.tolist()), "test": sorted(test.tolist())}


def balanced_choice(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of up to `count` examples, evenly over the classes that occur.

    Args:
        classes: `(n,)`, the class of each example.
        count: how many to choose.
        seed: of the choice within a class and of the order.

    Returns:
        `(min(count, n),)`: first one example of each class, then a second of each ...
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    rank = np.empty(len(classes), int)  # an example's place within its class
    for label in np.unique(classes):
        members = order[classes[order] == label]
        rank[members] = np.arange(len(members))
    return order[np.argsort(rank[order], kind="stable")][:count]
