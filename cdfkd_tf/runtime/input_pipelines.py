"""How `tf.data` runs our data sets."""

import tensorflow as tf


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same elements, without the thread that tunes buffers while they are read.

    That thread sleeps up to a minute between its looks, twice as long each time, and
    now and then the end of an iterator, as of `fit`, waits for it to wake: a training
    of a minute then ended 35 seconds late (TensorFlow 2.21, on one thread two of five
    runs). There is nothing to tune here: sizes of buffers are given.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def shared_by_batch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Of each element, which holds whole batches, every host takes its own part."""
    options, sharing = tf.data.Options(), tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharing
    return untuned(dataset).with_options(options)
