"""What networks and pipelines must know about each data set. Without TensorFlow."""

import dataclasses
from typing import Any

from cdfkd_tf.errors import RequestError, lookup


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done at random to training images, before they are normalised.

    Attributes:
        crop_padding: pixels of zeros around the image, which is then cropped back.
        horizontal_flip: whether half of the images are mirrored.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One data set, as the teachers see it.

    Attributes:
        name: what users type after `--dataset=`.
        num_classes: C.
        image_shape: `(height, width, channels)` that the networks take.
        mean: per channel, of images in [0, 1].
        std: likewise.
        shorter_side: images are scaled to this shorter side and then cropped, at
            random to learn from, in the centre to measure on; 0: scaled to
            `image_shape` as they are.
        augmentation: of training images.
        tfds_name: its name in TensorFlow Datasets; empty: as `name`.
        class_names: in the order of the labels; empty: as TFDS knows them.
        folder: of the user's own images; empty: TFDS has the data set.
        foreign_values: what a network from elsewhere expects if nothing inside it
            tells: `normalised`, or images in `0..1`.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int = 0
    augmentation: Augmentation = Augmentation()
    tfds_name: str = ""
    class_names: tuple[str, ...] = ()
    folder: str = ""
    foreign_values: str = "normalised"

    @property
    def standardised(self) -> bool:
        """True for mean 0 and deviation 1 per channel, False for plain [-1, 1]."""
        return any(value != 0.5 for value in (*self.mean, *self.std))

    def normalise(self, images: Any) -> Any:
        """Images `(..., channels)` in [0, 1] as the networks take them."""
        return (images - list(self.mean)) / list(self.std)

    def denormalise(self, images: Any) -> Any:
        """The way back; values that no image can hold leave [0, 1].

        Args:
            images: `(..., channels)`, normalised.
        """
        return images * list(self.std) + list(self.mean)


SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            num_classes=10,
            image_shape=(16, 16, 1),
            mean=(0.3051,),
            std=(0.3182,),
            augmentation=Augmentation(crop_padding=1),
        ),
        DatasetSpec(
            name="mnist",
            num_classes=10,
            image_shape=(32, 32, 1),
            mean=(0.1307,),
            std=(0.3081,),
        ),
        DatasetSpec(
            name="mnist_5k",
            tfds_name="mnist5k",
            num_classes=10,
            image_shape=(28, 28, 1),
            mean=(0.1307,),
            std=(0.3081,),
        ),
        DatasetSpec(
            name="fashion_mnist",
            num_classes=10,
            image_shape=(28, 28, 1),
            mean=(0.2860,),
            std=(0.3530,),
        ),
        DatasetSpec(
            name="cifar10",
            num_classes=10,
            image_shape=(32, 32, 3),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augmentation=Augmentation(crop_padding=4, horizontal_flip=True),
        ),
        DatasetSpec(
            name="cifar100",
            num_classes=100,
            image_shape=(32, 32, 3),
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            augmentation=Augmentation(crop_padding=4, horizontal_flip=True),
        ),
        DatasetSpec(
            name="caltech101",
            tfds_name="caltech101_stratified",
            num_classes=101,
            image_shape=(128, 128, 3),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            shorter_side=128,
            augmentation=Augmentation(horizontal_flip=True),
        ),
        DatasetSpec(
            name="mini_imagenet",
            num_classes=100,
            image_shape=(224, 224, 3),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            shorter_side=256,
            augmentation=Augmentation(horizontal_flip=True),
        ),
    )
}


def plain_spec(
    name: str, image_shape: tuple[int, ...], num_classes: int, **more: Any
) -> DatasetSpec:
    """A data set of which only its form is known; its networks see [-1, 1].

    Args:
        name: of the data set.
        image_shape: `(height, width, channels)`, channels 1 or 3.
        num_classes: C, at least 2.
        **more: further fields of `DatasetSpec`.

    Raises:
        RequestError: if shape or classes cannot be.
    """
    if len(image_shape) != 3 or min(image_shape) < 1 or image_shape[2] not in (1, 3):
        raise RequestError(
            "--image_shape must be height,width,channels with 1 or 3 channels; got "
            f"{','.join(map(str, image_shape)) or 'none'}."
        )
    if num_classes < 2:
        raise RequestError(f"--num_classes must be at least 2; got {num_classes}.")
    half = (0.5,) * image_shape[2]
    return DatasetSpec(
        name=name,
        num_classes=num_classes,
        image_shape=tuple(image_shape),
        mean=half,
        std=half,
        foreign_values="0..1",
        **more,
    )


def spec_of(name: str) -> DatasetSpec:
    """The data set called `name`.

    Raises:
        RequestError: if there is none; the message lists the known names.
    """
    return lookup(SPECS, name, "data set")
