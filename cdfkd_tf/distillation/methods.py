"""The comparison table: what each method makes student and generator minimise.

A method is a row of weights by term (`losses.TERMS`); an adversarial term has a
negative weight. Pure data: importing it needs neither TensorFlow nor Keras.
"""

import dataclasses
from collections.abc import Mapping

# Where images come from: name -> what a run learned from, for people.
IMAGES = {
    "generated": "images that a generator made up",
    "inverted": "images fitted to the teachers pixel by pixel",
    "real": "real training images",
    "procedural": "images drawn by formula",
    "pictures": "pieces of unrelated pictures",
    "patches": "pieces of unrelated pictures, nothing else",
    "noise": "Gaussian noise",
}
# What the papers' runs on CIFAR-100 share.
PUBLISHED = {
    "student": "resnet18",
    "student_steps": 5,
    "epochs": 300,
    "steps_per_epoch": 50,
    "batch_size": 256,
    "student_learning_rate": 0.1,
    "generator_learning_rate": 1e-3,
    "schedule": "steps",
}
# One batch of fitted images, then many steps of the student on all that are kept.
FITTED = PUBLISHED | {"student_steps": 400, "steps_per_epoch": 1, "schedule": "cosine"}
# One-shot federated learning: a fresh generator for each batch, and all are kept.
ONE_SHOT = FITTED | {
    "ensemble": "mean",
    "epochs": 200,
    "student_steps": 100,
    "synthesis_steps": 30,
    "bank_size": 51_200,
    "student_learning_rate": 0.01,
}
# The rest follows from teachers, images and machine, see `schedule`.
AUTOMATIC = {
    "student": "auto",
    "student_steps": 20,
    "epochs": 20,
    "batch_size": 64,
    "student_learning_rate": 0.1,
    "generator_learning_rate": 1e-3,
    "schedule": "cosine",
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        divergence: how logits are compared, a key of `losses.DIVERGENCES`: `l1` on
            logits or `kl` on softmaxes.
        student: term -> weight in what the student minimises.
        generator: the same for the generator; empty where none learns.
        sharing: how the student's headers share layers.
        images: where images come from, keys of `IMAGES`.
        teacher_gradient: whether the generator's divergences pass a gradient through
            the teachers, or take their logits for constants.
        adversarial_on: generated images that the generator's divergences count:
            `all`, or those where student and teachers `agree` or `disagree`.
        fits: whether each batch is fitted by gradient steps of its own, together with
            a copy of the generator, see `fitting`.
        fresh: whether that copy starts each time from fresh weights.
        boosts: whether the weights of the teachers' logits move, and the kept images
            away from what the teachers agree on, see `boosting`.
        temperature: of the softmaxes of `kl`.
        generator_temperature: the same for the generator; 0: as `temperature`.
        batch_statistics: whether the teachers' BatchNormalizations take mean and
            variance of the batch, instead of those they stored, where images are kept
            with answers.
        recipe: options of a run that the method brings with it, where none are given.
    """

    divergence: str
    student: Mapping[str, float]
    generator: Mapping[str, float]
    sharing: str
    images: tuple[str, ...] = ("generated",)
    teacher_gradient: bool = True
    adversarial_on: str = "all"
    fits: bool = False
    fresh: bool = False
    boosts: bool = False
    temperature: float = 1.0
    generator_temperature: float = 0.0
    batch_statistics: bool = False
    recipe: Mapping[str, object] = dataclasses.field(default_factory=lambda: PUBLISHED)

    def weights(self, role: str) -> Mapping[str, float]:
        """Term -> weight of `student` or `generator`."""
        return {"student": self.student, "generator": self.generator}[role]

    @property
    def has_generator(self) -> bool:
        """Whether a network generates its images."""
        return "generated" in self.images and bool(self.generator)


# A method with one header learns from the mean of all teachers; its published form is
# the case of one teacher.
METHODS = {
    "cdfkd_mfs": Method(
        divergence="l1",
        student={"header": 1.0, "feature": 0.2, "ensemble": 5.0},
        generator={"header": -1.0, "bn": 0.1},
        sharing="multi_level",
    ),
    "cdfkd": Method(
        divergence="kl",
        student={"header": 1.0, "ensemble": 1.0},
        generator={"header": -1.0, "ensemble": -1.0, "bn": 0.1},
        sharing="split",
        teacher_gradient=False,
    ),
    "dfed": Method(
        divergence="l1",
        student={"ensemble": 1.0},
        generator={"ensemble": -1.0, "bn": 0.1},
        sharing="single",
    ),
    "dfad": Method(
        divergence="l1",
        student={"ensemble": 1.0},
        generator={"ensemble": -1.0},
        sharing="single",
    ),
    "dfq": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"ensemble": -1.0, "bn": 0.1, "entropy": 0.1, "balance": 0.1},
        sharing="single",
    ),
    "kd": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={},
        sharing="single",
        images=("real",),
    ),
    # Fang et al., AAAI 2022. Here images are drawn evenly over the teachers' classes,
    # the first BatchNormalization weighs five times as much as the others, and the
    # student's decay is that of all methods (published: 1e-4).
    "fast": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"bn": 10.0, "cross_entropy": 0.4, "ensemble": -1.1},
        sharing="single",
        adversarial_on="agree",
        fits=True,
        temperature=20.0,
        generator_temperature=1.0,
        recipe=FITTED
        | {
            "epochs": 400,
            "synthesis_steps": 10,
            "bank_size": 102_400,  # all of them
            "student_learning_rate": 0.2,
            "generator_learning_rate": 5e-3,
        },
    ),
    # Fang et al., IJCAI 2021, with the settings of their CIFAR-10 code. As there: each
    # batch has a generator of its own and 200 steps of Adam, the classes it is asked
    # for, and views that are to be nearer to their own images than to all others, of
    # the batch and of earlier ones. Not: views are compared by the cosine of the
    # teachers' features, where the paper learns a map of them; each image has a piece
    # of its own for a view; several teachers; the first BatchNormalization weighs five
    # times as much as the others; images are drawn evenly over the teachers' classes.
    "cmi": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"bn": 1.0, "cross_entropy": 1.0, "ensemble": -0.5, "contrast": 0.8},
        sharing="single",
        adversarial_on="agree",
        fits=True,
        fresh=True,
        temperature=20.0,
        generator_temperature=1.0,
        recipe=FITTED | {"epochs": 200, "synthesis_steps": 200, "bank_size": 51_200},
    ),
    # Zhang et al., DENSE, NeurIPS 2022. As there: the target is the mean of logits,
    # each batch has a generator of its own, and noise that moves with it; the BN term,
    # here a mean over teachers, weighs 5, as the sum over their five does. Not: images
    # varied while they are fitted; the student makes equally many steps after each
    # batch, drawn evenly over the classes, instead of passes over a growing bank; the
    # first BatchNormalization weighs five times as much as the others.
    "dense": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"bn": 5.0, "cross_entropy": 1.0, "ensemble": -1.0},
        sharing="single",
        adversarial_on="disagree",
        fits=True,
        fresh=True,
        temperature=20.0,
        generator_temperature=1.0,
        recipe=ONE_SHOT,
    ),
    # Dai et al., Co-Boosting, ICLR 2024. As there: cross-entropy of hard images, one
    # weight per teacher, images moved away from what the teachers answer. Not: images
    # are moved once, when they are kept, not anew in each step; sizes, lengths and
    # draws are those of `dense`. What is reported of the ensemble is the plain mean.
    "coboosting": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"hard_cross_entropy": 1.0, "ensemble": -1.0},
        sharing="single",
        fits=True,
        fresh=True,
        boosts=True,
        temperature=4.0,
        generator_temperature=3.0,
        recipe=ONE_SHOT,
    ),
    # Yin et al., CVPR 2020, with the weights of their CIFAR-10 code, where the first
    # BatchNormalization weighs ten times as much as the others, here five times. The
    # student learns beside the fitting, not after it.
    "deepinversion": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"cross_entropy": 1.0, "bn": 10.0, "total_variation": 1e-3},
        sharing="single",
        images=("inverted",),
        temperature=4.0,
        recipe=FITTED | {"epochs": 80, "synthesis_steps": 2000, "bank_size": 20_480},
    ),
    "cdfkd_plus": Method(
        divergence="kl",
        student={"header": 1.0, "ensemble": 1.0},
        generator={"header": -0.5, "bn_mean": 8.0},
        sharing="shared",
        images=("procedural",),
        temperature=4.0,
        recipe=AUTOMATIC,
    ),
    # Raikwar and Mishra, NeurIPS 2022. As there: independent Gaussian pixels, and
    # BatchNormalizations of the teacher by the batch. Not: several teachers, whose
    # answers are kept; optimiser, sizes and lengths are those of `cdfkd_plus`.
    "noise": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={},
        sharing="single",
        images=("noise",),
        temperature=4.0,
        batch_statistics=True,
        recipe=AUTOMATIC,
    ),
    # Asano and Saeed, ICLR 2023. As there: strongly varied and mixed pieces of few
    # pictures, KL of softened softmaxes. Not: one picture alone, new pieces in each
    # step; several teachers, kept answers, balanced draws and sizes as `cdfkd_plus`.
    "patches": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={},
        sharing="single",
        images=("patches",),
        temperature=8.0,
        recipe=AUTOMATIC,
    ),
}
