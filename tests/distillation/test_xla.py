"""XLA compiles updates where it is asked to, and only there."""

import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.devices import choose_xla
from tests.small import small_distiller, small_latents


class Replicas:
    num_replicas_in_sync = 2


def test_auto_is_off_on_a_cpu_and_replicas_are_refused():
    alone = tf.distribute.get_strategy()
    assert not choose_xla("auto", False, alone) and not choose_xla(
        "false", False, alone
    )
    assert choose_xla("true", False, alone)
    with pytest.raises(RequestError, match=r"--jit_compile=true compiles for one dev"):
        choose_xla("true", False, Replicas())


def test_compiled_updates_are_the_same_updates():
    networks = []
    for xla in (False, True):
        distiller = small_distiller("dfed")
        distiller.compile(CoupledSGD(0.01), PaperAdam(1e-3), xla=xla)
        noise = tf.data.Dataset.from_tensors(small_latents())
        distiller.fit(noise, shuffle=False, verbose=0)
        networks.append(distiller)
    for ours, theirs in zip(*(it.student.get_weights() for it in networks)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_no_number_is_seen_outside_what_xla_compiles():
    distiller = small_distiller("dfed")
    distiller.compile(CoupledSGD(0.01), PaperAdam(1e-3), xla=True)
    weight = distiller.student.trainable_variables[0]
    weight.assign(np.full(weight.shape, np.nan))
    noise = tf.data.Dataset.from_tensors(small_latents())
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite: student"):
        distiller.fit(noise, shuffle=False, verbose=0)
