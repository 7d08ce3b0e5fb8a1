"""An image classifier of any origin as a frozen teacher."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.errors import DistillationWarning, RequestError, one_line
from cdfkd_tf.networks.bn_folding import copy_in
from cdfkd_tf.teachers.hooks import INNER, HookedModel, TeacherOutputs
from cdfkd_tf.teachers.input_adapter import InputAdapter

# Smallest probability whose logarithm is taken; far below any that float32 softmaxes
# of trained networks give, far above where float32 ends.
FLOOR = 1e-30
_PROBES = 4
# How far a copy in half precision may be from its model, relative to the largest value.
_HALF_BOUND = 0.2


class Teacher:
    """One frozen classifier, always in inference mode.

    Args:
        model: any Keras model, or a `SavedModelClassifier`, that answers `(B, C)`. It
            is frozen until `release`.
        adapter: how it sees the data set's normalised images; None: as they are.
        output: what it answers: `logits`, `probabilities`, or `auto` to find out.
        feature_layer: name of the layer whose output, pooled if it is a map, is the
            features; empty: they are what enters the last Dense layer.
        name: what messages call it.

    Attributes:
        provides: out of "gradient" (one from its logits reaches the images),
            "features", "bn_statistics", "feature_maps".
        num_classes: C_i.
        feature_width: W_i, or None where there are no features to read.
        num_batch_norms: how many BatchNormalizations a forward pass meets.
        output: `logits` or `probabilities`.

    Raises:
        RequestError: if the model does not answer `(B, C)`, answers what is neither
            logits nor probabilities, or has no layer `feature_layer`.
    """

    def __init__(
        self,
        model: keras.Model,
        adapter: InputAdapter | None = None,
        *,
        output: str = "logits",
        feature_layer: str = "",
        name: str = "",
    ):
        self.model, self.adapter, self.name = model, adapter, name or model.name
        self._feature_layer = feature_layer
        self.output = output
        images = self._random_images()
        if not getattr(model, "built", True):  # a call builds it
            model(self._adapted(images), training=False)
        self._given = self._network = HookedModel(model, feature_layer, self.name)
        try:
            self._probe(images)
        except Exception:
            self.release()
            raise

    def __call__(
        self, normalised: KerasTensor, needs: frozenset[str] = frozenset()
    ) -> TeacherOutputs:
        """Its outputs for normalised images.

        Args:
            normalised: `(B, height, width, channels)`, as the data set's images.
            needs: what is wanted beside logits and features, "bn_statistics" or
                "feature_maps". Without these fewer operations are done, with the
                weights as they stood at the last `optimise_for_inference`, or else
                the first time.
        """
        outputs = self._network(self._adapted(normalised), needs)
        return outputs._replace(logits=self._as_logits(outputs.logits))

    def optimise_for_inference(self, dtype_policy: str | None = None) -> None:
        """Computes faster from now on, with the weights as they stand.

        Args:
            dtype_policy: of the layers; None: as the model has them. A model that
                cannot be copied into it keeps its own; a `DistillationWarning` says
                why.
        """
        self._network = self._given
        if dtype_policy:
            try:
                self._network = self._copied(dtype_policy)
            except Exception as error:  # anybody's layers, with whatever they raise
                warnings.warn(
                    f"Teacher {self.name} does not compute in {dtype_policy} but as "
                    f"its file says, which takes longer: {one_line(error)}",
                    DistillationWarning,
                    stacklevel=2,
                )
        self._network.fold()

    def release(self) -> None:
        """Gives the model back as it was: flags of training, and layers' calls.

        A second time does nothing. Afterwards only logits can be asked for.
        """
        self._given.release()

    def _copied(self, dtype_policy: str) -> HookedModel:
        copy = copy_in(self.model, dtype_policy)
        network = HookedModel(copy, self._feature_layer, self.name)
        images = self._adapted(self._random_images())
        pairs = zip(network(images)[:2], self._given(images)[:2])  # logits, features
        if not all(_alike(*pair) for pair in pairs):
            raise ValueError("its outputs are too different then")
        return network

    def _adapted(self, images: KerasTensor) -> KerasTensor:
        return self.adapter(images) if self.adapter else images

    @property
    def num_parameters(self) -> int:
        """How many weights it has; 0 if it does not show them."""
        return sum(int(np.prod(weight.shape)) for weight in self.model.weights)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """What one image measures for the model itself, open sides as the data set."""
        if not self.adapter:
            return tuple(self.model.input_shape[1:])
        shape = zip(self.adapter.shape, self.adapter.spec.image_shape)
        return tuple(side or given for side, given in shape)

    def _as_logits(self, answer: KerasTensor) -> KerasTensor:
        answer = ops.cast(answer, keras.config.floatx())
        if self.output == "probabilities":
            # Logits are known up to a constant; trained networks' are centred.
            answer = ops.log(ops.maximum(answer, FLOOR))
            answer = answer - ops.mean(answer, axis=-1, keepdims=True)
        return answer

    def _random_images(self) -> tf.Tensor:
        spec = self.adapter and self.adapter.spec
        shape = spec.image_shape if spec else self.model.input_shape[1:]
        images = np.random.default_rng(0).random((_PROBES, *shape)).astype("float32")
        images = spec.normalise(images) if spec else images
        return tf.cast(tf.constant(images), keras.config.floatx())

    def _probe(self, images: tf.Tensor) -> None:
        """Finds out by one call on random images what no attribute tells."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            inputs = self._adapted(images)
            answer, features, bn, maps = self._network(inputs, INNER)
            total = tf.reduce_sum(tf.cast(answer, images.dtype))
        if len(getattr(answer, "shape", ())) != 2 or answer.shape[-1] < 2:
            got = tuple(getattr(answer, "shape", ())) or type(answer).__name__
            raise RequestError(
                f"A teacher answers one row of at least two classes per image, (B, C); "
                f"{self.name} answers {got} for {_PROBES} images."
            )
        self.num_classes = answer.shape[-1]
        if self.output == "auto":
            last = self._given.layers[-1] if self._given.layers else None
            self.output = _kind_of(np.asarray(answer, "float64"), last, self.name)
        self.feature_width = None if features is None else features.shape[-1]
        self.num_batch_norms = len(bn)
        found = {
            "gradient": tape.gradient(total, images) is not None,
            "features": features is not None,
            "bn_statistics": bool(bn),
            "feature_maps": bool(maps),
        }
        self.provides = frozenset(name for name, there in found.items() if there)

    def __str__(self) -> str:
        parts = [
            str(self.adapter) if self.adapter else "images as they are",
            self.output,
            f"{self.num_batch_norms} BatchNormalizations",
            f"{self.feature_width} features" if self.feature_width else "no features",
        ]
        return f"{self.name}: {', '.join(parts)}"


def _kind_of(answer: np.ndarray, last: keras.layers.Layer | None, name: str) -> str:
    """`logits` or `probabilities`, by what rows `(B, C)` look like.

    Args:
        answer: to a few random images.
        last: layer of the model, if it shows any.
        name: what messages call it.
    """
    within = answer.min() >= 0 and answer.max() <= 1
    if within and np.allclose(answer.sum(-1), 1, atol=1e-2):
        return "probabilities"
    if getattr(last, "activation", None) is keras.activations.sigmoid:
        raise RequestError(
            f"Teacher {name} answers separate sigmoids, one per class; expected "
            "logits, or probabilities of classes that exclude each other. If the "
            "sigmoids are to be taken for logits say --teacher_output=logits."
        )
    return "logits"


def _alike(ours, theirs) -> bool:
    """Whether two outputs, or both Nones, differ by half precision's rounding alone."""
    if ours is None or theirs is None:
        return ours is theirs
    ours, theirs = (np.asarray(tf.cast(x, "float64")) for x in (ours, theirs))
    return bool(
        np.abs(ours - theirs).max() <= _HALF_BOUND * np.abs(theirs).max() + 1e-6
    )
