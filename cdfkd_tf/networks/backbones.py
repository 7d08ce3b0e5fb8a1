"""The table of backbones: name -> `builder(image, width) -> Trunk`."""

from cdfkd_tf.registry import Registry

BACKBONES = Registry("network")
