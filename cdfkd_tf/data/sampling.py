"""Which examples of a larger number to take."""

import numpy as np


def balanced_choice(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of up to `count` items, as many of each class as can be.

    Args:
        classes: `(n,)`, the class of each item.
        count: how many to choose; all, mixed, if there are no more.
        seed: of the choice within a class.

    Returns:
        `(min(count, n),)` indices into `classes`, none twice, dealt class by class:
        the first of each class, then the second of each, ...
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    ranks = np.empty(len(classes), int)  # an item's place within its class
    for label in np.unique(classes):
        members = order[classes[order] == label]
        ranks[members] = np.arange(len(members))
    return order[np.argsort(ranks[order], kind="stable")][:count]
