"""Who of several teachers saw which training images. Plain NumPy."""

import numpy as np

CLASS_SETS = {  # P3
    "2x5": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
    "5x2": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
    "overlapping": [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]],
}


def dirichlet(
    labels: np.ndarray, teachers: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Parts of skewed classes: the smaller alpha, the fewer classes a teacher sees.

    For each class its images are shared out by a draw of Dir(alpha), of which those
    who hold their share of all images get nothing more; again until everyone has ten
    (Zhang et al., DENSE, NeurIPS 2022).

    Args:
        labels: `(n,)`.
        teachers: T.
        alpha: of the Dirichlet distribution; infinite: equal parts at random.
        seed: of the draws.

    Returns:
        T arrays of places in `labels`.
    """
    rng, count = np.random.default_rng(seed), len(labels)
    if np.isinf(alpha):
        return [
            np.sort(part) for part in np.array_split(rng.permutation(count), teachers)
        ]
    while True:
        parts: list[list[int]] = [[] for _ in range(teachers)]
        for label in np.unique(labels):
            places = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet([alpha] * teachers)
            shares *= [len(part) < count / teachers for part in parts]
            ends = (np.cumsum(shares / shares.sum()) * len(places)).astype(int)
            for part, more in zip(parts, np.split(places, ends[:-1])):
                part.extend(more.tolist())
        if min(map(len, parts)) >= 10:
            return [np.sort(part) for part in parts]


def class_sets(labels: np.ndarray, name: str, seed: int) -> list[np.ndarray]:
    """Parts of whole classes; a class of several teachers is shared out equally.

    Args:
        labels: `(n,)`.
        name: a key of `CLASS_SETS`.
        seed: of the draws.

    Returns:
        T arrays of places in `labels`.
    """
    rng, sets = np.random.default_rng(seed), CLASS_SETS[name]
    parts: list[list[int]] = [[] for _ in sets]
    for label in np.unique(labels):
        owners = [part for part, known in zip(parts, sets) if label in known]
        places = rng.permutation(np.flatnonzero(labels == label))
        for part, more in zip(owners, np.array_split(places, len(owners))):
            part.extend(more.tolist())
    return [np.sort(part) for part in parts]
