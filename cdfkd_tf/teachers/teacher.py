"""An image classifier of any origin as a frozen teacher."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.errors import DistillationWarning, RequestError, one_line, reason
from cdfkd_tf.networks.preprocessing import find_values
from cdfkd_tf.networks.rebuilding import (
    copy_in,
    ends_linear,
    with_float_input,
    without_last_softmax,
)
from cdfkd_tf.teachers import answers
from cdfkd_tf.teachers.hooks import INNER, HookedModel, TeacherOutputs
from cdfkd_tf.teachers.input_adapter import InputAdapter
from cdfkd_tf.teachers.reading import (
    LabelledImages,
    Reading,
    find_reading,
    formula_images,
)

# Smallest probability whose logarithm is taken; far below any that float32 softmaxes
# of trained networks give, far above where float32 ends.
FLOOR = 1e-30
_PROBES = 6
_NARROW = 16
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
        num_classes: expected, to choose among several outputs; None: any.

    Attributes:
        provides: out of "gradient" (one from its logits reaches the images),
            "features", "bn_statistics", "feature_maps".
        num_classes: C_i.
        feature_width: W_i, or None where there are no features to read.
        num_batch_norms: how many BatchNormalizations a forward pass meets.
        output: `logits`, `probabilities` or `log-probabilities`.
        reading: what is known of the pixel values that it expects.
        variation: how much its answers to one image differ, as a share of how they
            differ between images; 0 before `check_repetition`.

    Raises:
        RequestError: if the model cannot be called with such images, does not answer
            `(B, C)`, answers NaN or what is neither logits nor probabilities, or has no
            layer `feature_layer`.
    """

    def __init__(
        self,
        model: keras.Model,
        adapter: InputAdapter | None = None,
        *,
        output: str = "logits",
        feature_layer: str = "",
        name: str = "",
        num_classes: int | None = None,
    ):
        self.model, self.adapter, self.name = model, adapter, name or model.name
        self.output, self._feature_layer, self.variation = output, feature_layer, 0.0
        self.reading = Reading(adapter.values if adapter else "as they are", "given")
        images = self._probe_images()
        if not getattr(model, "built", True):  # a call builds it
            model(self._adapted(images), training=False)
        network = with_float_input(model)
        # Of probabilities the logits are wanted, before they are rounded to 0 and 1.
        bare = None if output == "logits" else without_last_softmax(network)
        self._ends_bare, self._reads_before_softmax = bare is not None, False
        self._given = self._network = HookedModel(
            bare or network, feature_layer, self.name
        )
        try:
            self._probe(images, num_classes)
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
        return self._with_logits(*self._network(self._adapted(normalised), needs))

    def find_reading(self, labelled: LabelledImages | None) -> None:
        """Finds out which pixel values it expects, and gives it these from now on.

        Args:
            labelled: real images on which it may be tried; None: without any.
        """
        self.reading = find_reading(
            self.model,
            find_values(self.model, self.image_shape),
            self.adapter,
            lambda images: self._with_logits(*self._ask(images)).logits.numpy(),
            tf.function(self._first_bn_inputs),
            labelled,
        )
        self.adapter = dataclasses.replace(self.adapter, values=self.reading.values)

    def check_repetition(self) -> None:
        """Asks twice about the same images, with the values that are known by now.

        Raises:
            RequestError: answers that are mostly noise.
        """
        images = self._adapted(self._probe_images())
        once, again = (self._with_logits(*self._ask(images)).logits for _ in range(2))
        self.variation = answers.variation(once.numpy(), again.numpy(), self.name)

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
        copy = copy_in(self._given.model, dtype_policy)
        network = HookedModel(copy, self._feature_layer, self.name)
        images = self._adapted(self._probe_images())
        ours, theirs = (
            self._with_logits(*each(images))[:2] for each in (network, self._given)
        )  # logits and features
        if not all(_alike(*pair) for pair in zip(ours, theirs)):
            raise ValueError("its outputs are too different then")
        return network

    def _adapted(self, images: KerasTensor) -> KerasTensor:
        return self.adapter(images) if self.adapter else images

    @property
    def num_parameters(self) -> int:
        """How many weights it has; 0 if it does not show them."""
        return sum(int(np.prod(weight.shape)) for weight in self.model.weights)

    @property
    def class_norms(self) -> np.ndarray | None:
        """Norm of what speaks for each class in the last layer, `(C_i,)`.

        Of the last Dense or convolution, or of a file without layers the last matrix,
        that has a column per class: of each column, less the mean of all, which no
        softmax sees, the positive part; what only denies a class is no knowledge of
        it. None where there is no such layer, or one of fewer than 16 numbers a
        column, whose norms tell chance alone.
        """
        kinds = (keras.layers.Dense, keras.layers.Conv2D)
        layers = [la for la in self._given.layers if isinstance(la, kinds) and la.built]
        kernels = [layer.kernel for layer in layers] or self.model.weights
        for kernel in reversed(kernels):
            if len(kernel.shape) > 1 and kernel.shape[-1] == self.num_classes:
                rows = np.asarray(kernel, "float64").reshape(-1, self.num_classes)
                if len(rows) < _NARROW:
                    return None
                rows = np.maximum(rows - rows.mean(axis=1, keepdims=True), 0)
                return np.linalg.norm(rows, axis=0)
        return None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """What one image measures for the model itself, open sides as the data set."""
        if not self.adapter:
            return tuple(self.model.input_shape[1:])
        shape = zip(self.adapter.shape, self.adapter.spec.image_shape)
        return tuple(side or given for side, given in shape)

    def _with_logits(
        self, outputs: TeacherOutputs, before_softmax: KerasTensor | None
    ) -> TeacherOutputs:
        """The outputs with logits in the place of the answer."""
        is_bare = self._ends_bare
        if self._reads_before_softmax and before_softmax is not None:  # not released
            is_bare, rows = True, answers.rows_of(before_softmax)[""]
        else:
            rows = self._rows(outputs.logits)[self._output_name]
        logits = ops.cast(rows, keras.config.floatx())
        if self.output == answers.PROBABILITIES:
            logits = logits if is_bare else ops.log(ops.maximum(logits, FLOOR))
            # Logits are known up to a constant; trained networks' are centred.
            logits = logits - ops.mean(logits, axis=-1, keepdims=True)
        logits = tf.ensure_shape(logits, (None, self.num_classes))
        return outputs._replace(logits=logits)

    def _rows(self, answer: Any) -> dict[str, KerasTensor]:
        return answers.rows_of(answer, getattr(self.model, "output_names", ()))

    def _probe_images(self) -> tf.Tensor:
        spec = self.adapter and self.adapter.spec
        if spec:
            images = spec.normalise(formula_images(_PROBES, spec.image_shape))
        else:
            shape = (_PROBES, *self.model.input_shape[1:])
            images = np.random.default_rng(0).random(shape)
        return tf.constant(images, keras.config.floatx())

    def _probe(self, normalised: tf.Tensor, num_classes: int | None) -> None:
        """Finds out by calls on a few images what no attribute tells."""
        images = self._adapted(normalised)
        found: dict[str, Any] = {}

        # Traced, so that only what is asked for is computed: no gradient (it is enough
        # that there is one), and none of the filters, whose kernel may crash (1x1
        # convolutions with strides and at most 8 channels).
        # As they are written: the training step does not rewrite them either.
        @tf.function(reduce_retracing=True, autograph=False)
        def ask(images):
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs, before_softmax = self._network(images, INNER)
                rows = self._rows(outputs.logits).values()
                total = sum(tf.reduce_sum(tf.cast(row, images.dtype)) for row in rows)
            features, bn, maps = outputs[1:]
            found.update(
                gradient=bool(rows) and tape.gradient(total, images) is not None,
                features=features is not None and features.shape[-1],
                bn_statistics=len(bn),
                feature_maps=len(maps),
            )
            return TeacherOutputs(outputs.logits, None, [], []), before_softmax

        try:
            outputs, before_softmax = ask(images)
        except Exception as error:  # anybody's layers, with whatever they raise
            raise RequestError(
                f"Teacher {self.name} cannot be called with {_PROBES} images of "
                f"{tuple(images.shape[1:])}: {reason(error)}"
            ) from error
        self._ask = ask
        self._output_name = answers.choose_rows(
            outputs.logits,
            getattr(self.model, "output_names", ()),
            num_classes,
            self.name,
        )
        rows = self._rows(outputs.logits)[self._output_name].numpy()
        answers.check_finite_rows(rows, self.name)
        self.num_classes = rows.shape[1]
        # Of all scales: whatever values it expects, it has seen such.
        scale = 1 if getattr(self.model, "told_values", None) else 255
        if self._ends_bare:
            self.output = answers.PROBABILITIES
        elif self.output != answers.LOGITS:
            larger, larger_before = ask(images * scale)
            larger = self._rows(larger.logits)[self._output_name].numpy()
            finite = np.isfinite(larger).all(-1)
            rows = np.concatenate([rows, larger[finite]])
            if self.output == "auto":
                linear = ends_linear(self.model)
                self.output = answers.kind_of_rows(rows, linear, self.name)
            if self.output == answers.PROBABILITIES and rows.min() < -1e-3:
                raise RequestError(
                    f"Teacher {self.name} answers {rows.min():.3g}, which is no "
                    "probability. Leave --teacher_output=probabilities out."
                )
            if self.output == answers.PROBABILITIES and before_softmax is not None:
                before, larger = (
                    np.asarray(ops.cast(each, "float64")).reshape(len(images), -1)
                    for each in (before_softmax, larger_before)
                )
                before = np.concatenate([before, larger[finite]])
                # Relative: a thousand classes have a thousandth each, and a mean of
                # two softmaxes may be near the last one on faint images alone.
                self._reads_before_softmax = before.shape == rows.shape and np.allclose(
                    answers.softmax(before), rows, rtol=0.1, atol=1e-5
                )
        self.provides = frozenset(name for name, value in found.items() if value)
        self.feature_width = found["features"] or None
        self.num_batch_norms = found["bn_statistics"]

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out about it, as results.json and Python tell it."""
        return {
            "input": self.reading.values,
            "input_evidence": self.reading.evidence,
            "output": self.output,
        }

    def _first_bn_inputs(self, images: tf.Tensor) -> tuple | None:
        """Input, mean and variance of the first BatchNormalization that was trained."""
        for inputs, mean, variance in self._network(images, INNER)[0].bn:
            if mean.numpy().any() or (variance.numpy() != 1).any():
                return inputs, mean, variance
        return None

    def __str__(self) -> str:
        parts = [
            f"{self.adapter} {self.reading}" if self.adapter else "images as they are",
            f"{self.output} {self._output_name}".strip(),
            f"{self.num_batch_norms} BatchNormalizations",
            f"{self.feature_width} features" if self.feature_width else "no features",
        ]
        if self.variation:
            parts.append(
                f"something random inside changes its answers by {self.variation:.1%}"
            )
        return f"{self.name}: {', '.join(parts)}"


def _alike(ours, theirs) -> bool:
    """Whether two outputs, or both Nones, differ by half precision's rounding alone."""
    if ours is None or theirs is None:
        return ours is theirs
    ours, theirs = (np.asarray(tf.cast(x, "float64")) for x in (ours, theirs))
    return bool(
        np.abs(ours - theirs).max() <= _HALF_BOUND * np.abs(theirs).max() + 1e-6
    )
