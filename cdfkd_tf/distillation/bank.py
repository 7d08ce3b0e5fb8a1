"""Images kept together with the teachers' answers, to be learned from many times.

A student step on kept images needs no teacher, and asking needs no gradient: teachers
are asked once per image, outside the training graph. Draws are balanced over the
classes that the teachers see: of plain draws half may fall into one class.
"""

import itertools
import json
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.data.transfer_set import Kind, mixture
from cdfkd_tf.distillation.image_source import OBSERVED, Batch, ImageSource
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.teachers.ensemble import TeacherEnsemble, TeacherOutputs

_MOST_DRAWN = 16.0  # times as often as the average image, for those of rare classes
_TINY = 1e-6
# Of a bank; each is drawn, asked about and learned from for itself, so that hosts can
# keep some of them each and together learn what one would.
PARTS = 8
_APART = 100_000_007  # the seeds of two parts
_TOLD_EVERY = 10  # seconds
# To see how near to the teachers' own a kind of images is: so many of them, or as many
# as have so many pixels if these are fewer, but not fewer than the last.
_SAMPLED = (256, 2**22, 64)
_MEASURED = (256, 2**20, 16)  # for statistics of all layers: each image has many places


class Bank:
    """Images and the teachers' answers to them.

    Attributes:
        images: `(n, height, width, channels)`, uint8, of this process's parts.
        logits: `(n, T, C)`, float32.
        features: T arrays `(n, W_i)`, float32; empty if not asked for.
        part_sizes: N in parts, of all processes together.
        own_parts: those of this process.
        shares: kind -> share, of one that was filled.
        class_counts: `(C,)`, how many of all N images the teachers' mean puts into
            each class, of one that was filled.
    """

    def __init__(
        self,
        images: np.ndarray,
        logits: np.ndarray,
        features: Sequence[np.ndarray],
        *,
        part_sizes: Sequence[int] = (),
        own_parts: range = range(1),
    ):
        self.images, self.logits, self.features = images, logits, list(features)
        self.part_sizes = tuple(part_sizes) or (len(images),)
        self.own_parts = own_parts

    def __len__(self) -> int:
        """N, of all processes together."""
        return sum(self.part_sizes)


def sizes_of_parts(count: int) -> tuple[int, ...]:
    """As equal as can be: `PARTS` of them, or one of a few images."""
    parts = PARTS if count >= PARTS else 1
    ends = [count * (part + 1) // parts for part in range(parts)]
    return tuple(np.diff(ends, prepend=0).tolist())


def parts_of_this_process(count: int, strategy: tf.distribute.Strategy) -> range:
    """Each host has as many of `count` parts, or all, where that cannot be."""
    hosts, index = _hosts_of(strategy)
    each = count // hosts if count % hosts == 0 else 0
    return range(index * each, (index + 1) * each) if each else range(count)


def _hosts_of(strategy) -> tuple[int, int]:
    """How many processes train together, and which of them this is."""
    resolver = strategy.cluster_resolver
    hosts = strategy.num_replicas_in_sync // _replicas_here(strategy)
    return hosts, (resolver.task_id or 0) if resolver else 0


def _replicas_here(strategy) -> int:
    """How many replicas this process has."""
    alone = strategy.num_replicas_in_sync == 1
    return 1 if alone else len(strategy.extended.worker_devices)


def automatic_size(spec: DatasetSpec, minutes: float) -> int:
    """How many images a bank keeps if nothing is said: 256 MB, at most 40,000.

    A byte per pixel and channel is counted.

    Args:
        spec: of the images.
        minutes: for the whole run; 0: any. Few minutes are for learning, not drawing.
    """
    most = min(40_000, 2**28 // math.prod(spec.image_shape))
    return min(most, max(1000, int(8000 * minutes))) if minutes else most


def fill(
    kinds: Mapping[str, Kind],
    count: int,
    teachers: TeacherEnsemble,
    spec: DatasetSpec,
    folder: pathlib.Path,
    *,
    batch_size: int,
    seed: int,
    features: bool = False,
    needs: frozenset[str] = frozenset(),
    seconds: float | None = None,
) -> Bank:
    """Draws a mixture of the kinds that suits the teachers, and asks them.

    Each process fills its own parts.

    Args:
        kinds: from `transfer_set.kinds_of`.
        count: N.
        teachers: frozen.
        spec: of the images.
        folder: where answers are kept.
        batch_size: images that teachers are asked at once.
        seed: of all the images.
        features: whether the teachers' features are wanted, too.
        needs: see `ask`.
        seconds: that this may take; None: any. There are fewer images then, as many
            as were found at first where a call goes on.

    Raises:
        RunError: see `ask`.
    """
    shape = spec.image_shape
    answer = _asked(teachers, spec, features, needs)
    answer(np.zeros((batch_size, *shape), "uint8"))  # the first one traces
    begun = time.monotonic()
    sampled, measured = _enough(_SAMPLED, shape), _enough(_MEASURED, shape)
    samples = {name: draw(sampled, shape, seed) for name, draw in kinds.items()}
    covered = coverages(teachers, samples, answer, batch_size)
    each = (time.monotonic() - begun) / (sampled * len(kinds))
    gaps = {}
    if len(kinds) > 1:
        few = {name: images[:measured] for name, images in samples.items()}
        gaps = statistics_gaps(teachers, few, spec, batch_size)
    shares = {kind: round(s, 6) for kind, s in shares_of(covered, gaps).items()}
    if seconds:
        kept = folder / "mixture.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        count = max(_SAMPLED[0], min(count, int(seconds / each)))
        if known.get("shares") == shares:  # the same kinds, seed and teachers
            count = known["count"]
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps({"shares": shares, "count": count}))
    mixed = ", ".join(f"{s:.0%} {kind}" for kind, s in shares.items() if s >= 0.005)
    waiting = f"; asking takes about {count * each:.0f} s" if count * each > 20 else ""
    print(f"Images to learn from: {count}, {mixed}{waiting}.", flush=True)
    strategy, sizes = tf.distribute.get_strategy(), sizes_of_parts(count)
    own = parts_of_this_process(len(sizes), strategy)
    bank = ask(
        teachers,
        np.concatenate(
            [mixture(kinds, shares, sizes[p], shape, seed + p * _APART) for p in own]
        ),
        spec,
        folder,
        batch_size=batch_size,
        features=features,
        needs=needs,
        part_sizes=sizes,
        own_parts=own,
    )
    bank.shares = shares
    classes = np.argmax(teachers.combined(bank.logits), axis=-1)
    counts = np.bincount(classes, minlength=bank.logits.shape[-1])
    bank.class_counts = counts if len(own) == len(sizes) else _summed(counts, strategy)
    print(
        f"The teachers see {np.count_nonzero(bank.class_counts)} of "
        f"{len(bank.class_counts)} classes in them, the rarest in "
        f"{min(bank.class_counts)} images.",
        flush=True,
    )
    return bank


def ask(
    teachers: TeacherEnsemble,
    images: np.ndarray,
    spec: DatasetSpec,
    folder: pathlib.Path,
    *,
    batch_size: int = 128,
    features: bool = False,
    needs: frozenset[str] = frozenset(),
    note: Callable[[str], None] = print,
    part_sizes: Sequence[int] = (),
    own_parts: range = range(1),
) -> Bank:
    """Asks all teachers for their answers, and keeps these as they come.

    What an interrupted call has asked is not asked again, as long as images and
    teachers are the same. Within the scope of a strategy each replica of this process
    asks for its share; processes need not wait for each other.

    Args:
        teachers: frozen.
        images: `(n, height, width, channels)`, uint8.
        spec: of the images.
        folder: where answers are kept.
        batch_size: images asked at once.
        features: whether the teachers' features are wanted, too.
        needs: what of the teachers' forward pass is not as usual, see `Teacher`.
        note: is told what was found and how far it is.
        part_sizes: as of a `Bank`; empty: these images are one part.
        own_parts: likewise.
    """
    strategy, told = tf.distribute.get_strategy(), time.monotonic()
    answer = _asked(teachers, spec, features, needs, batch_size, strategy)
    first = answer(images[:batch_size])
    _, index = _hosts_of(strategy)
    if index:  # the first process has the folder itself
        folder = folder / f"process_{index}"
    folder.mkdir(parents=True, exist_ok=True)
    arrays, record = [], folder / "answered.json"
    done = _answered(folder, record, images, first)
    for index, values in enumerate(first):
        file, shape = folder / f"answers_{index}.npy", (len(images), *values.shape[1:])
        mode = "r+" if done else "w+"
        arrays.append(
            np.lib.format.open_memmap(file, mode, dtype="float32", shape=shape)
        )
    if done and done < len(images):
        note(f"{done} of {len(images)} images were answered before.")
    own_sizes = [part_sizes[part] for part in own_parts] if part_sizes else []
    batches = _full_batches(own_sizes or [len(images)], batch_size)
    for number, (start, end) in enumerate(batches):
        if end <= done:
            continue
        for array, values in zip(arrays, answer(images[start:end])):
            array[start:end] = values
        if number % 16 == 15:
            _keep(arrays, record, end, images)
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            note(f"{end} of {len(images)} images are answered.")
    _keep(arrays, record, len(images), images)
    logits, *rest = (np.array(array) for array in arrays)
    return Bank(images, logits, rest, part_sizes=part_sizes, own_parts=own_parts)


def _full_batches(sizes, batch_size) -> Iterator[tuple[int, int]]:
    """First and last of each batch; no batch holds images of two parts. The last of a
    part has some of the one before, too: it shall be as large, for its statistics."""
    for begin, last in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        for start in range(begin, last, batch_size):
            end = min(start + batch_size, last)
            yield max(begin, end - batch_size), end


def _asked(
    teachers, spec, features, needs, batch_size=0, strategy=None
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function from uint8 images to logits and, if wanted, features.

    With a strategy of several replicas all must call it, with `batch_size` at most.
    """

    def kept(outputs: TeacherOutputs) -> list:
        return [outputs.logits, *(outputs.features if features else [])]

    def answer(images: np.ndarray) -> list[np.ndarray]:
        normalised = np.asarray(spec.normalise(images / 255), "float32")
        return [
            np.asarray(values, "float32")
            for values in kept(teachers.answers(normalised, needs))
        ]

    def answer_by_shares(images: np.ndarray) -> list[np.ndarray]:
        whole = np.resize(images, (batch_size, *images.shape[1:]))  # repeats the first
        normalised = np.asarray(spec.normalise(whole / 255), "float32")
        joined = by_replica(_by_replica(normalised, strategy))
        return [np.asarray(v, "float32")[: len(images)] for v in joined]

    @tf.function(autograph=False)
    def by_replica(parts):
        found = strategy.run(lambda part: kept(teachers(part, needs)), args=(parts,))
        found = [strategy.experimental_local_results(values) for values in found]
        return [tf.concat(values, axis=0) for values in found]

    # Statistics of a batch are those of the whole one.
    several = strategy and _replicas_here(strategy) > 1 and not needs
    return answer_by_shares if several else answer


def _by_replica(rows: np.ndarray, strategy):
    """Of rows, as many as a multiple of them, each replica of this process gets an
    equal share."""
    devices = _replicas_here(strategy)

    def share(context):
        parts = np.split(rows, devices)
        return tf.constant(parts[context.replica_id_in_sync_group % devices])

    return strategy.experimental_distribute_values_from_function(share)


def _summed(counts: np.ndarray, strategy) -> np.ndarray:
    """The sum of what all processes counted."""
    devices = _replicas_here(strategy)

    def once(context):
        first = context.replica_id_in_sync_group % devices == 0
        return tf.constant(counts * first)

    values = strategy.experimental_distribute_values_from_function(once)
    return strategy.reduce("SUM", values, axis=None).numpy()


def _answered(folder, record, images, first) -> int:
    """How many images have answers in the folder: those of the same images, given by
    teachers that answer the first ones alike."""
    if not record.exists():
        return 0
    kept = json.loads(record.read_text())
    if kept["images"] != _fingerprint(images) or kept["outputs"] != len(first):
        return 0
    for index, values in enumerate(first):
        stored = np.load(
            folder / f"answers_{index}.npy", mmap_mode="r", allow_pickle=False
        )[: len(values)]
        if stored.shape != values.shape or not np.allclose(stored, values, atol=1e-3):
            return 0
    return kept["answered"]


def _keep(arrays, record, answered: int, images) -> None:
    for array in arrays:
        array.flush()
    entry = {"answered": answered, "outputs": len(arrays)}
    with replacing(record) as temporary:
        temporary.write_text(json.dumps({**entry, "images": _fingerprint(images)}))


def _fingerprint(images: np.ndarray) -> str:
    some = images[:: max(1, len(images) // 997)]
    return f"{images.shape} {zlib.crc32(some.tobytes())}"


def drawing_weights(classes: np.ndarray | tf.Tensor, num_classes: int) -> tf.Tensor:
    """How likely each image is drawn: every class alike, as far as it has images.

    No image is drawn more than `_MOST_DRAWN` times as often as the average one: a
    class of two images must not be learned by heart.

    Args:
        classes: `(N,)`, of each image; -1: there is none in this place.
        num_classes: C.

    Returns:
        `(N,)`, float64, summing to 1.
    """
    there = tf.cast(classes >= 0, tf.float64)
    counts = tf.math.unsorted_segment_sum(there, classes, num_classes)
    weights = there / tf.maximum(tf.gather(counts, tf.maximum(classes, 0)), 1)
    mean = tf.reduce_sum(weights) / tf.reduce_sum(there)
    weights = tf.minimum(weights, _MOST_DRAWN * mean)
    return weights / tf.reduce_sum(weights)


class BankedImages(ImageSource):
    """Batches drawn from a bank.

    A batch is drawn evenly from all parts, one after the other: a host, which learns
    from some rows of it, needs to have the parts of these alone.

    Args:
        bank: images and answers.
        classes: `(n,)`, the class that each image of this process is counted for.
        spec: of the images.
        student_steps: K, batches per element.
        batch_size: B over all replicas.
        seed: of the draws.
        held_out: images of no training step, uint8, for `observe`.
    """

    def __init__(
        self,
        bank: Bank,
        classes: np.ndarray,
        spec: DatasetSpec,
        *,
        student_steps: int,
        batch_size: int,
        seed: int,
        held_out: np.ndarray,
    ):
        super().__init__()
        self.bank, self.student_steps = bank, student_steps
        self._spec, self._batch_size, self._seed = spec, batch_size, seed
        self._held_out = held_out
        num_classes = bank.logits.shape[-1]
        ends = np.cumsum([0, *(bank.part_sizes[part] for part in bank.own_parts)])
        weights = [
            drawing_weights(classes[start:end], num_classes)
            for start, end in itertools.pairwise(ends)
        ]
        # Where in [0, 1) of the whole bank each of its images ends.
        parts = len(bank.part_sizes)
        first = bank.own_parts.start / parts
        self._bounds = first + tf.cumsum(tf.concat(weights, 0)) / parts

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Endless elements `(images, answers)`, each `(B, K, ...)`.

        Element i depends on the seed and i alone. Of rows that other hosts learn from
        it holds any images.
        """
        kept = (self.bank.images, self.bank.logits, *self.bank.features)
        kept = [tf.constant(array) for array in kept]
        bounds, rows = self._bounds, tf.range(self._batch_size, dtype="float64")
        shape = [self._batch_size, self.student_steps]

        def draw(step):
            seed = tf.stack([tf.constant(self._seed, tf.int64), step])
            within = tf.random.stateless_uniform(shape, seed, dtype=bounds.dtype)
            places = tf.reshape((rows[:, None] + within) / shape[0], [-1])
            chosen = tf.searchsorted(bounds, places, side="right")
            chosen = tf.reshape(tf.minimum(chosen, len(bounds) - 1), shape)
            images, *answers = (tf.gather(array, chosen) for array in kept)
            return tf.cast(images, "float32"), *answers

        return tf.data.Dataset.counter(first_step).map(draw).prefetch(2)

    def next_batches(self, element: Any) -> Batch:
        """The element's images and answers, with the leading axis K.

        Args:
            element: images `(B, K, height, width, channels)`, 0 to 255; logits
                `(B, K, T, C)`; features `(B, K, W_i)`, if kept.
        """
        images, *answers = (ops.swapaxes(array, 0, 1) for array in element)
        logits, *features = (ops.cast(x, keras.config.floatx()) for x in answers)
        return Batch(images, TeacherOutputs(logits, features, [], []))

    def normalise(self, images: KerasTensor) -> KerasTensor:
        """Images `(..., height, width, channels)` of 0 to 255, normalised."""
        return self._spec.normalise(ops.cast(images, keras.config.floatx()) / 255)

    def observe(self) -> Iterator[np.ndarray]:
        """The first held-out images, see `held_out`."""
        return self.held_out(OBSERVED)

    def held_out(self, most: int | None = None) -> Iterator[np.ndarray]:
        """Images of the bank's kinds that no step sees, as of `observe`.

        Args:
            most: how many; None: all.

        Returns:
            Batches `(b, height, width, channels)`, normalised, float32.
        """
        images = self._held_out[:most]
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            yield np.asarray(self._spec.normalise(part / 255), "float32")


def statistics_gaps(
    teachers: TeacherEnsemble,
    samples: Mapping[str, np.ndarray],
    spec: DatasetSpec,
    batch_size: int,
) -> dict[str, float]:
    """How far kinds of images are from what the teachers were trained on.

    The mean over teachers, BatchNormalizations and channels of the distance between
    the images' mean and the stored one in stored deviations, and of the logarithm of
    the deviations' ratio.

    Args:
        teachers: frozen.
        samples: kind -> images `(n, height, width, channels)`, uint8.
        spec: of the images.
        batch_size: images at once.

    Returns:
        Kind -> gap; empty if no teacher has BatchNormalization.
    """
    gaps = {}
    for kind, images in samples.items():
        starts = range(0, len(images), batch_size)
        parts = [
            _layer_sums(teachers, spec.normalise(images[start:][:batch_size] / 255))
            for start in starts
        ]
        layers = [_gap(*map(sum, zip(*layer))) for layer in zip(*parts)]
        if layers:
            gaps[kind] = float(np.mean(layers))
    return gaps


def _layer_sums(teachers, normalised) -> list[tuple]:
    """Of each BatchNormalization's inputs: number, sums, sums of squares; and,
    times the number, so that they can be added up, the stored mean and variance."""
    needs, found = frozenset({"bn_statistics"}), []
    for norms in teachers(tf.constant(normalised, "float32"), needs).bn:
        for inputs, mean, variance in norms:
            # Where they are: as an array they would be copied, and in float64.
            moments = tf.nn.moments(inputs, list(range(len(inputs.shape) - 1)))
            count = math.prod(inputs.shape[:-1])
            means, spreads, *stored = (
                np.asarray(x, "float64") for x in (*moments, mean, variance)
            )
            sums = (means, spreads + means**2, *stored)
            found.append((count, *(count * values for values in sums)))
    return found


def _enough(sample: tuple[int, int, int], shape: tuple[int, ...]) -> int:
    """How many images of `shape` a sample takes: `(most, pixels, fewest)`."""
    most, pixels, fewest = sample
    return max(fewest, min(most, pixels // math.prod(shape[:2])))


def _gap(count, total, squares, moving_mean, moving_variance) -> float:
    mean, moving_mean = total / count, moving_mean / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation = np.sqrt(moving_variance / count + _TINY)
    shift = np.abs(mean - moving_mean) / deviation
    ratio = np.abs(np.log((spread + _TINY**0.5) / deviation))
    return float(np.mean(np.minimum(shift, 10) + np.minimum(ratio, 10)))


def coverages(
    teachers: TeacherEnsemble,
    samples: Mapping[str, np.ndarray],
    answer: Callable[[np.ndarray], list[np.ndarray]],
    batch_size: int,
) -> dict[str, float]:
    """How many of the classes the teachers see in each kind of images.

    The geometric mean over classes of C times the mean probability: 1 if all classes
    are seen alike, near 0 if some never are.

    Args:
        teachers: frozen.
        samples: kind -> images `(n, height, width, channels)`, uint8.
        answer: of such images the logits `(n, T, C)`, first in a list.
        batch_size: images at once.

    Returns:
        Kind -> coverage, 0 to 1.
    """
    found = {}
    for kind, images in samples.items():
        starts = range(0, len(images), batch_size)
        parts = [answer(images[start:][:batch_size])[0] for start in starts]
        logits = teachers.combined(np.concatenate(parts))
        seen = np.mean(ops.softmax(logits), axis=0, dtype="float64")
        found[kind] = float(np.exp(np.log(seen * len(seen) + _TINY).mean()))
    return found


def shares_of(
    covered: Mapping[str, float], gaps: Mapping[str, float]
) -> dict[str, float]:
    """How much of each kind goes into a mixture.

    The more of the classes are seen in it and the nearer its statistics are to the
    teachers', the more.

    Args:
        covered: from `coverages`.
        gaps: from `statistics_gaps`; empty: unknown, all alike.

    Returns:
        Kind -> share, summing to 1.
    """
    # Of the second and the fourth power the fourth was better on digits and clothes,
    # and no worse on MNIST-5k (experiments/better_images).
    weights = {
        kind: (coverage / (gaps.get(kind, 1.0) + _TINY)) ** 4 + _TINY
        for kind, coverage in covered.items()
    }
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}
