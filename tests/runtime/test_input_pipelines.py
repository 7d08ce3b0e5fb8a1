"""Options of tf.data: what they change, and what not."""

import tensorflow as tf

from cdfkd_tf.runtime.input_pipelines import shared_by_batch, untuned


def test_elements_stay_and_nothing_is_tuned():
    dataset = tf.data.Dataset.range(5).map(lambda x: 2 * x, tf.data.AUTOTUNE)
    for changed in (untuned(dataset), shared_by_batch(dataset)):
        assert [int(x) for x in changed.prefetch(2)] == [0, 2, 4, 6, 8]
        assert changed.options().autotune.enabled is False
    sharing = shared_by_batch(dataset).options().experimental_distribute
    assert sharing.auto_shard_policy == tf.data.experimental.AutoShardPolicy.DATA
