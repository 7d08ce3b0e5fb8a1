"""Learns how to weigh the headers from a few labelled images, real or generated."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf
from scipy import optimize, special

from cdfkd_tf.distillation import numerics
from cdfkd_tf.networks.aggregators import AGGREGATORS, aggregator_kind, build_aggregator
from cdfkd_tf.teachers.rules import Rule

BATCH_SIZE = 100  # as published
FOLDS = 5
BEST = "best"  # of --aggregator: whichever gains most
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclasses.dataclass(frozen=True)
class AggregatorFit:
    """What came out, judged on samples that it had not learned from.

    Attributes:
        kind: a key of `AGGREGATORS`.
        learned: whether the learned weights are used; False: what needs no labels, the
            mean of the headers or the teachers' rule, was kept.
        epochs: passes over the samples that cross-validation chose, or with a penalty
            which of `PENALTIES`, from 1; 0: none was as good as what needs no labels.
        accuracy: share of the samples that weights get right which were learned from
            the others.
        mean_accuracy: the same for what needs no labels.
        standard_error: of the difference, paired over the samples.
        samples: n.
        loss: mean cross-entropy, in nats, where `accuracy` was measured.
    """

    kind: str
    learned: bool
    epochs: int
    accuracy: float
    mean_accuracy: float
    standard_error: float
    samples: int
    loss: float

    def __str__(self) -> str:
        gain = 100 * (self.accuracy - self.mean_accuracy)
        verdict = "above" if self.learned else "not above"
        return (
            f"{self.kind}: {self.accuracy:.1%} in cross-validation on {self.samples} "
            f"samples, headers joined without labels {self.mean_accuracy:.1%}; the "
            f"gain of {gain:.1f} points is {verdict} its standard error of "
            f"{100 * self.standard_error:.1f}: "
            + ("learned weights are used." if self.learned else "it is not used.")
        )


def student_outputs(
    student: keras.Model, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The student's outputs for all batches, and their labels.

    Args:
        student: a stack of headers.
        batches: at least one, of normalised images `(B, height, width, channels)` and
            labels `(B,)`.

    Returns:
        `logits` `(n, H, C)` and `features` `(n, H, W)` by name; labels `(n,)`.
    """
    parts, labels = zip(*((student.predict_on_batch(x), y) for x, y in batches))
    outputs = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return outputs, np.concatenate(labels)


def choose_aggregator(
    kind: str,
    student: keras.Model,
    rule: Rule,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    **how: float,
) -> tuple[keras.Model, list[AggregatorFit]]:
    """The aggregator of one kind, or of the best kind, fitted; or what needs no labels.

    Args:
        kind: see `aggregator_kind`; with `BEST` all that learn and start at what needs
            no labels are tried, and the one that is right most often in
            cross-validation is taken.
        student: whose headers are joined.
        rule: of the teachers.
        outputs: see `fit_aggregator`.
        labels: likewise.
        **how: `epochs`, `learning_rate` and `seed`, likewise.

    Returns:
        What joins the headers from now on; what was tried, the best first.
    """
    free = aggregator_kind("auto", student, rule)
    baseline, tried = build_aggregator(free, student, rule), []
    names = [aggregator_kind(kind, student, rule)]
    if names == [BEST]:
        names = [n for n, row in AGGREGATORS.items() if row.penalised]
        if free == "mean":  # at which all others start, too
            names = [n for n, row in AGGREGATORS.items() if row.learned]
    for name in names:
        aggregator = build_aggregator(name, student, rule)
        fit = fit_aggregator(aggregator, outputs, labels, baseline=baseline, **how)
        tried.append((fit, aggregator))
    tried.sort(key=lambda pair: (-pair[0].learned, -pair[0].accuracy, pair[0].loss))
    best, aggregator = tried[0]
    fits = [fit for fit, _ in tried]
    keeps = best.learned or not AGGREGATORS[best.kind].learned
    return (aggregator if keeps else baseline), fits


def fit_aggregator(
    aggregator: keras.Model,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    baseline: keras.Model | None = None,
) -> AggregatorFit:
    """Fits `aggregator` in place, or leaves it as it is built.

    Cross-validation over all samples, stratified by class, chooses the number of
    epochs, or the penalty, by cross-entropy. What needs no labels stays unless the
    share of right classes, too, grows by more than the standard error of the growth.
    Then all samples are learned from.

    Args:
        aggregator: from `build_aggregator`, freshly built.
        outputs: the student's for n images, n at least 2: `logits` `(n, H, C)` and
            `features` `(n, H, W)`.
        labels: `(n,)`.
        epochs: the most passes over the samples.
        learning_rate: Adam's.
        seed: of the folds, and of the order of the samples.
        baseline: what needs no labels; None: `aggregator` as it is built.
    """
    kind = aggregator.name.removesuffix("_aggregator")
    if AGGREGATORS[kind].penalised:
        learner, epochs = _Penalised(aggregator, outputs, labels), len(PENALTIES)
    else:
        learner = _Learner(aggregator, outputs, labels, learning_rate)
    everything, rng = np.arange(len(labels)), np.random.default_rng(seed)
    right, losses = learner.judge(everything)
    if baseline is not None:
        right, losses = _judged(baseline(dict(outputs)), labels)
    if not aggregator.trainable_variables:
        epochs = 0
    right = np.tile(right, (epochs + 1, 1))  # (epochs + 1, n), 0 epochs being the mean
    losses = np.tile(losses, (epochs + 1, 1))
    folds = _folds(labels, rng)
    for fold in range(folds.max() + 1):
        judged = np.flatnonzero(folds == fold)
        learning = learner.epochs(np.flatnonzero(folds != fold), rng)
        for epoch in itertools.islice(learning, epochs):
            right[epoch, judged], losses[epoch, judged] = learner.judge(judged)
    best = int(losses.mean(axis=1).argmin())
    gains = right[best].astype(int) - right[0]
    wins, changes = int(gains.sum()), int(np.abs(gains).sum())
    # The gain above its standard error, in whole numbers: no tie is lost in rounding.
    learned = wins > 0 and wins**2 > changes
    learner.reset()
    if learned:
        for _ in itertools.islice(learner.epochs(everything, rng), best):
            pass
    return AggregatorFit(
        kind=kind,
        learned=learned,
        epochs=best if learned else 0,
        accuracy=float(right[best].mean()),
        mean_accuracy=float(right[0].mean()),
        standard_error=float(gains.std(ddof=1) / len(labels) ** 0.5),
        samples=len(labels),
        loss=float(losses[best].mean()),
    )


def _folds(labels, rng) -> np.ndarray:
    """The fold of each sample; those of one class are spread over all folds."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), int)
    folds[order] = np.arange(len(labels)) % min(FOLDS, len(labels))
    return folds


class _Learner:
    """Learns again and again from other samples, always from the same start."""

    def __init__(self, aggregator, outputs, labels, learning_rate):
        self._outputs, self._labels = dict(outputs), labels
        optimizer = keras.optimizers.Adam(learning_rate)
        variables = aggregator.trainable_variables
        optimizer.build(variables)
        moving = [*variables, *optimizer.variables]
        self._start = [(variable, np.array(variable)) for variable in moving]

        def learn(outputs, labels):
            def loss():
                logits = keras.ops.cast(aggregator(outputs), "float32")
                return keras.ops.mean(
                    keras.losses.sparse_categorical_crossentropy(
                        labels, logits, from_logits=True
                    )
                )

            numerics.minimise(loss, optimizer, variables)

        self._learn = tf.function(learn, reduce_retracing=True)
        self._logits = tf.function(aggregator, reduce_retracing=True)

    def _batch(self, samples):
        chosen = {name: part[samples] for name, part in self._outputs.items()}
        return tf.nest.map_structure(tf.constant, (chosen, self._labels[samples]))

    def judge(self, samples) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample's class is right, and its cross-entropy."""
        return _judged(self._logits(self._batch(samples)[0]), self._labels[samples])

    def epochs(self, samples, rng):
        """Starts anew; yields how many passes over these samples are done."""
        self.reset()
        for epoch in itertools.count(1):
            mixed = rng.permutation(samples)
            for start in range(0, len(mixed), BATCH_SIZE):
                self._learn(*self._batch(mixed[start:][:BATCH_SIZE]))
            yield epoch

    def reset(self):
        """Everything is as it was before anything was learned."""
        for variable, value in self._start:
            variable.assign(value)


class _Penalised:
    """Learns what is added to the logits that need no labels, held near 0.

    The mean cross-entropy plus `penalty / 2` times the squared weights, of headers'
    logits scaled to deviation 1: convex, so that the samples alone decide.
    """

    def __init__(self, aggregator, outputs, labels):
        self._layer, self._labels = aggregator.get_layer("learned"), labels
        inner = keras.Model(aggregator.input, [self._layer.input, aggregator.output])
        columns, start = map(np.array, inner(dict(outputs)))
        self._scale = max(float(columns.std()), 1e-6)
        self._columns = columns.astype("float64") / self._scale
        self._start = start.astype("float64")
        self._kernel_shape = self._shape = tuple(self._layer.get_weights()[0].shape)
        self._apply, self._back = "nf,fc->nc", "nf,nc->fc"
        if columns.ndim == 4:  # (n, F, 1, K): each class, or header, for itself
            self._columns, self._shape = self._columns[:, :, 0], columns.shape[1::2]
            self._apply, self._back = "nfk,fk->nk", "nfk,nk->fk"
        fixed = [one for one in aggregator.layers if one.name == "spread"]
        self._spread = fixed[0].get_weights()[0].astype("float64") if fixed else None
        self.reset()

    def epochs(self, samples, rng):
        """Starts anew; yields how many of `PENALTIES` were tried, after each."""
        self.reset()
        truth = np.eye(self._start.shape[1])[self._labels[samples]]
        columns = self._columns[samples]
        for place, penalty in enumerate(PENALTIES, start=1):

            def loss(flat, penalty=penalty):
                logits = self._start[samples] + self._added(columns, flat)
                log_shares = special.log_softmax(logits, axis=-1)
                slope = (np.exp(log_shares) - truth) / len(samples)
                if self._spread is not None:
                    slope = slope @ self._spread.T
                gradient = np.einsum(self._back, columns, slope)
                gradient = np.concatenate([gradient.ravel(), slope.sum(0)])
                value = -(truth * log_shares).sum() / len(samples)
                return value + penalty / 2 * flat @ flat, gradient + penalty * flat

            found = optimize.minimize(loss, self._flat, jac=True, method="L-BFGS-B")
            self._assign(found.x)
            yield place

    def judge(self, samples) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample's class is right, and its cross-entropy."""
        added = self._added(self._columns[samples], self._flat)
        return _judged(self._start[samples] + added, self._labels[samples])

    def reset(self):
        """Nothing is added."""
        self._assign(np.zeros(np.prod(self._shape) + self._shape[-1]))

    def _added(self, columns, flat):
        """What weights add to the logits `(n, C)`."""
        kernel, bias = self._parts(flat)
        added = np.einsum(self._apply, columns, kernel) + bias
        return added if self._spread is None else added @ self._spread

    def _parts(self, flat):
        bias = self._shape[-1]
        return flat[:-bias].reshape(self._shape), flat[-bias:]

    def _assign(self, flat):
        self._flat = flat
        kernel, bias = self._parts(flat)
        self._layer.set_weights(
            [(kernel / self._scale).reshape(self._kernel_shape), bias]
        )


def _judged(logits, labels) -> tuple[np.ndarray, np.ndarray]:
    """Whether each class is right, and the cross-entropies."""
    logits = np.asarray(logits, "float64")
    losses = -special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return logits.argmax(-1) == labels, losses
