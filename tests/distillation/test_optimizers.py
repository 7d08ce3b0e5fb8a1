"""Optimisers against the rules they claim, in NumPy."""

import keras
import numpy as np
import pytest

from cdfkd_tf.distillation.optimizers import (
    CoupledSGD,
    LearningRates,
    PaperAdam,
    learning_rate_factor,
)
from tests.rows import rows

RNG = np.random.default_rng(0)
START = RNG.normal(size=7)
GRADIENTS = RNG.normal(size=(6, 7))
RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.01]


def run(optimizer):
    variable = keras.Variable(START.astype("float32"))
    optimizer.build([variable])
    for gradient, rate in zip(GRADIENTS, RATES):
        optimizer.learning_rate.assign(rate)
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
    return np.asarray(variable)


@rows("nesterov", [False, True])
def test_coupled_sgd_couples_decay_and_keeps_the_rate_out_of_its_buffer(nesterov):
    w, v = START.copy(), np.zeros(7)
    for g, rate in zip(GRADIENTS, RATES):
        g = g + 0.05 * w
        v = 0.9 * v + g
        w = w - rate * (g + 0.9 * v if nesterov else v)
    ours = run(CoupledSGD(0.1, momentum=0.9, l2=0.05, nesterov=nesterov))
    np.testing.assert_allclose(ours, w, rtol=1e-5)


def test_paper_adam_adds_epsilon_to_the_corrected_root():
    epsilon = 0.3  # large, so that its place is seen
    w, m, v = START.copy(), np.zeros(7), np.zeros(7)
    for t, (g, rate) in enumerate(zip(GRADIENTS, RATES), start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + epsilon)
    np.testing.assert_allclose(run(PaperAdam(0.1, epsilon=epsilon)), w, rtol=1e-4)


@pytest.mark.slow
def test_optimizers_come_back_from_their_config():
    for optimizer in (CoupledSGD(0.2, l2=0.3, nesterov=True), PaperAdam(0.2)):
        copy = type(optimizer).from_config(optimizer.get_config())
        assert copy.get_config() == optimizer.get_config()


@pytest.mark.slow
def test_coupled_sgd_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"momentum must be above 0; got 0\.0"):
        CoupledSGD(momentum=0.0)


def test_schedule_steps_drop_to_a_tenth_at_each_milestone():
    factors = [
        learning_rate_factor(e, schedule="steps", epochs=6, milestones=(2, 4))
        for e in range(6)
    ]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.1, 0.01, 0.01])


def test_schedule_cosine_is_half_a_wave():
    factors = [
        learning_rate_factor(e, schedule="cosine", epochs=4, milestones=())
        for e in range(5)
    ]
    np.testing.assert_allclose(factors, [1, 0.8535534, 0.5, 0.1464466, 0], atol=1e-7)


def test_learning_rates_follow_each_optimizers_schedule():
    student = (CoupledSGD(0.5), 0.1, "steps")
    generator = (PaperAdam(0.5), 0.002, "constant")
    optimizers = {"student": student, "generator": generator}
    rates = LearningRates(optimizers, epochs=9, milestones=(3,))
    for epoch, factor in ((0, 1), (3, 0.1), (1, 1)):
        rates.on_epoch_begin(epoch)
        np.testing.assert_allclose(float(student[0].learning_rate), 0.1 * factor)
        np.testing.assert_allclose(float(generator[0].learning_rate), 0.002)
