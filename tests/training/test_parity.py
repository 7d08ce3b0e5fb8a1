"""Two whole iterations give the losses that the published implementation gave."""

import numpy as np
import pytest

from cdfkd_tf.methods import METHODS, with_overrides
from cdfkd_tf.models import build_classifier, build_generator, build_student
from cdfkd_tf.models.pytorch import load_pytorch_tensors
from cdfkd_tf.models.teachers import TeacherEnsemble
from cdfkd_tf.training.adversarial import AdversarialDistiller
from cdfkd_tf.training.optimizers import CoupledSGD, PaperAdam
from tests.parity.filling import RECORDED, draw, fill, load

TEACHERS = {
    "iteration_wrn": ["wrn16_1"] * 3,
    "iteration_mixed": ["wrn16_1", "wrn16_1", "wrn16_2"],
}
SHAPE, CLASSES, ROUNDS = (32, 32, 3), 10, 5


def filled(model, salt, like):
    tensors = [  # the networks were recorded with 100 classes, the iterations with 10
        [name, [CLASSES, *shape[1:]] if shape[0] == 100 else shape]
        for name, shape in RECORDED[like]["tensors"]
    ]
    load_pytorch_tensors(model, fill(salt, tensors))
    return model


def distiller_of(tag, settings):
    salt = tag.removeprefix("iteration_")
    teachers = [
        filled(build_classifier(name, SHAPE, CLASSES), f"{salt}/teacher{index}", name)
        for index, name in enumerate(TEACHERS[tag])
    ]
    student = build_student("wrn16_1", SHAPE, CLASSES, num_headers=3)
    generator = build_generator("dafl", SHAPE, 256, standardised=True)
    method = with_overrides(
        METHODS["cdfkd_mfs"],
        student_feature=settings["weight_feature"],
        student_ensemble=settings["weight_ensemble"],
        generator_bn=settings["weight_bn"],
    )
    distiller = AdversarialDistiller(
        filled(student, f"{salt}/student", "mh_wrn16_1"),
        TeacherEnsemble(teachers),
        method,
        filled(generator, f"{salt}/generator", "generator_32"),
        generator_moves_statistics=True,
    )
    sgd, adam = settings["sgd"], settings["adam"]
    distiller.compile(
        CoupledSGD(sgd["lr"], sgd["momentum"], sgd["coupled_l2"]),
        PaperAdam(
            adam["lr"],
            beta_1=adam["betas"][0],
            beta_2=adam["betas"][1],
            epsilon=adam["eps"],
        ),
    )
    return distiller


def read_terms(distiller, player):
    """The weighted terms of the last update, in the recorded order."""
    weights = distiller.weights_of[player]
    order = ("header", "feature", "ensemble", "bn")
    values = [
        weights[term] * float(distiller.trackers[f"{player}_{term}"].result())
        if weights.get(term)
        else 0.0
        for term in order
        if term in weights
    ]
    distiller.reset_metrics()
    return values


@pytest.mark.parametrize("tag", sorted(TEACHERS))
def test_two_iterations_equal_the_recorded_ones(tag):
    settings, recorded = RECORDED[tag], load(tag)
    salt, batch = tag.removeprefix("iteration_"), settings["batch"]
    distiller = distiller_of(tag, settings)
    rows = iter(recorded["losses"])
    for iteration in range(settings["iterations"]):
        names = [*range(ROUNDS), "g"]
        noise = [draw(salt, f"z{iteration}.{name}", (batch, 256)) for name in names]
        latents = np.stack(noise, axis=1)
        rounds = distiller.prepare_rounds(latents)
        for index in range(ROUNDS):
            distiller.student_round(rounds, index)
            expected = next(rows)[2:]
            np.testing.assert_allclose(
                read_terms(distiller, "student"), expected, rtol=1e-3
            )
        distiller.generator_round(latents)
        expected = next(rows)[2:4]
        np.testing.assert_allclose(
            read_terms(distiller, "generator"), expected, rtol=1e-3
        )
    probe = draw(salt, "probe", (8, *SHAPE))
    logits = np.moveaxis(distiller.student(probe, training=False)["logits"], 1, 0)
    recorded_logits = recorded["student_logits_eval"]
    difference = np.abs(logits - recorded_logits).max()
    assert difference <= 1e-2 * np.abs(recorded_logits).max()
    images = distiller.generator(draw(salt, "probe_z", (batch, 256)), training=True)
    assert np.abs(images - recorded["generator_images_train"]).max() <= 1e-2
