"""TensorFlow SavedModels as classifiers."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.keras_internals import inlined_function

# Operations that apply weights, if one of their inputs is constant.
_WEIGHTED = """
    Conv2D DepthwiseConv2dNative Conv3D MatMul BatchMatMulV2 Einsum XlaConvV2
    FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
"""


class SavedModelClassifier:
    """A TensorFlow SavedModel as a classifier: outputs and gradients, no layers.

    One that takes whole numbers gets the values behind its cast to floats, if they
    can be reached; one that takes N images at once gets them in pieces of N.

    Call arguments:
        images: `(B, ...)` as its signature takes them. Returns what that answers, one
            tensor or a dict; always in inference mode.

    Attributes:
        input_shape: with the batch axis; None if the file leaves its rank open.
        output_shape: likewise; of several outputs a dict.
        input_dtype: of the images that the file takes.

    Args:
        folder: of the SavedModel.

    Raises:
        RequestError: without a signature of one tensor of numbers. TensorFlow raises
            many kinds of errors for a damaged file.
    """

    def __init__(self, folder: pathlib.Path):
        self.name, self.layers, self.trainable = folder.name, [], False
        self._loaded = tf.saved_model.load(str(folder))  # signatures die with it
        self._signature = _of_images(self._loaded.signatures, folder)
        ((self._input, image),) = self._signature.structured_input_signature[1].items()
        self._dtype, self.input_dtype = image.dtype, image.dtype.name
        known = image.shape.rank is not None
        self.input_shape = tuple(image.shape) if known else None
        self._at_once = image.shape[0] if known else None
        answers = self._signature.structured_outputs
        shapes = {n: tuple(a.shape) for n, a in answers.items() if a.shape.rank}
        self.output_shape = (
            shapes if len(answers) > 1 else next(iter(shapes.values()), None)
        )
        self.weights = list(getattr(self._loaded, "variables", ()))
        self._function = self._behind_cast() if image.dtype.is_integer else None

    def __call__(
        self, images: KerasTensor, training: bool = False
    ) -> KerasTensor | dict[str, KerasTensor]:
        """See the class."""
        images = tf.cast(images, tf.float32 if self._function else self._dtype)
        outputs = self._in_pieces(images) if self._at_once else self._answer(images)
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def front(self, images: np.ndarray) -> tuple[Any, ...] | None:
        """What the first operation with weights gets of images `(n, ...)`.

        Returns:
            Its input; if it is a BatchNormalization, the mean and the variance that it
            was trained on, `(channels,)` each. None if it is not found.
        """
        try:
            inlined, image = self._inlined()
            known = {image.name}
            for operation in inlined.graph.get_operations():
                given = [tensor.name in known for tensor in operation.inputs]
                is_weighted = operation.type in _WEIGHTED.split()
                if is_weighted and any(given) and not all(given):
                    break
                known |= {tensor.name for tensor in operation.outputs if any(given)}
            else:
                return None
            is_norm = operation.type.startswith("FusedBatchNorm")
            wanted = (given.index(True), *((3, 4) if is_norm else ()))
            front = inlined.prune(image, [operation.inputs[index] for index in wanted])
            size = self._at_once or 1
            parts = [
                front(tf.cast(np.resize(image, (size, *image.shape)), self._dtype))
                for image in images
            ]
            return np.stack([part[0][0] for part in parts]), *parts[0][1:]
        except Exception:  # what TensorFlow cannot take apart is left unread
            return None

    def _behind_cast(self):
        """The function of the floats that whole numbers are cast to."""
        try:
            inlined, tensor = self._inlined()
            while not tensor.dtype.is_floating:
                (reader,) = tensor.consumers()
                (tensor,) = reader.outputs
            flat = [
                inlined.graph.get_tensor_by_name(t.name)
                for t in self._signature.outputs
            ]
            outputs = tf.nest.pack_sequence_as(self._signature.structured_outputs, flat)
            return inlined.prune(tensor, outputs)
        except Exception:  # it stays a function of whole numbers, without a gradient
            return None

    def _inlined(self) -> tuple[Any, tf.Tensor]:
        """The signature as one graph, and the images in it."""
        inlined = inlined_function(self._signature)
        name = self._signature.inputs[0].name
        return inlined, inlined.graph.get_tensor_by_name(name)

    def _answer(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        if self._function:
            return self._function(images)
        return self._signature(**{self._input: images})

    def _in_pieces(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        count, size = tf.shape(images)[0], self._at_once
        missing = [[0, -count % size], *[[0, 0]] * (images.shape.rank - 1)]
        pieces = tf.reshape(tf.pad(images, missing), (-1, size, *images.shape[1:]))
        kinds = {
            name: tf.TensorSpec(value.shape, value.dtype)
            for name, value in self._signature.structured_outputs.items()
        }
        outputs = tf.map_fn(self._answer, pieces, fn_output_signature=kinds)
        return {
            name: tf.reshape(value, (-1, *value.shape[2:]))[:count]
            for name, value in outputs.items()
        }


def _of_images(signatures: Any, folder: pathlib.Path) -> Any:
    """The signature to call: of one tensor of numbers, rather floats.

    Raises:
        RequestError: there is none.
    """
    fit = {}
    for name, signature in signatures.items():
        inputs = list(signature.structured_input_signature[1].values())
        if len(inputs) == 1 and (
            inputs[0].dtype.is_floating or inputs[0].dtype.is_integer
        ):
            fit[name] = (not inputs[0].dtype.is_floating, name != "serving_default")
    if fit:
        return signatures[min(fit, key=fit.get)]
    said = "; ".join(
        f"{name} takes "
        + (
            ", ".join(
                f"{each.dtype.name} {each.shape}"
                for each in signature.structured_input_signature[1].values()
            )
            or "nothing"
        )
        for name, signature in signatures.items()
    )
    raise RequestError(
        f"SavedModel {folder} needs a signature that takes one tensor of pixels "
        f"(batch, height, width, channels); {said or 'it has none at all'}. Save it "
        "again with one, as model.export(folder) does."
    )
