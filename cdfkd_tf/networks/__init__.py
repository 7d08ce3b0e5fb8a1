"""Networks. Importing this package fills the tables of backbones and generators."""

from cdfkd_tf.networks import lenet, resnet, wide_resnet
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.generators import GENERATORS, build_generator
from cdfkd_tf.networks.students import build_student

__all__ = [
    "BACKBONES",
    "GENERATORS",
    "build_classifier",
    "build_generator",
    "build_student",
    "lenet",
    "resnet",
    "wide_resnet",
]
