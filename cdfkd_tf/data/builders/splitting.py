"""One way of splitting for all builders: seeded, stratified, 80/20."""

from collections.abc import Sequence

import numpy as np

TEST_SHARE = 0.2
SPLIT_SEED = 1


def stratified_split(labels: Sequence[int]) -> dict[str, list[int]]:
    """Which examples belong to `train` and which to `test`.

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
