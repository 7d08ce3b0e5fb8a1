"""The student's opponent: a generator that makes the images both players learn on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.distillation.distiller import Distiller, plain
from cdfkd_tf.distillation.methods import Method
from cdfkd_tf.distillation.thrift import OneByOne


@contextmanager
def unmoved(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Gives variables back the values they had, when the block ends."""
    before = [tf.identity(variable.value) for variable in variables]
    yield
    for variable, value in zip(variables, before):
        variable.assign(value)


class AdversarialDistiller(Distiller):
    """Several student rounds, then one generator round, without any real image.

    `fit` on `latent_dataset`, whose elements are `(B, R, Z)`: R - 1 student rounds
    and one generator round.

    Args:
        student: see `Distiller`, as the next two.
        teachers: the frozen teachers.
        method: which terms weigh what.
        generator: noise `(B, Z)` to normalised images; always in training mode.
        generator_moves_statistics: whether the generator round updates the student's
            BatchNormalization moving statistics, as the published code does. It only
            blurs what inference will use, so the default is not to.
        low_memory: pass teachers one at a time through the generator round.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Any,
        method: Method,
        generator: keras.Model,
        *,
        generator_moves_statistics: bool = False,
        low_memory: bool = False,
        **kwargs,
    ):
        super().__init__(student, teachers, method, **kwargs)
        self.generator = generator
        self.generator_moves_statistics = generator_moves_statistics
        self.opponents = self.teachers
        if low_memory:
            statistics = bool(self.method.generator.get("bn"))
            self.opponents = OneByOne(self.teachers, statistics=statistics)

    def compile(
        self,
        student_optimizer: keras.optimizers.Optimizer,
        generator_optimizer: keras.optimizers.Optimizer,
        **kwargs,
    ):
        """Sets both optimisers and builds their state, so that it can be saved."""
        super().compile(student_optimizer, **kwargs)
        self.generator_optimizer = generator_optimizer
        generator_optimizer.build(self.generator.trainable_variables)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on: name -> network or optimiser."""
        opponent = {
            "generator": self.generator,
            "generator_optimizer": self.generator_optimizer,
        }
        return {**super().state, **opponent}

    def train_step(self, latents: KerasTensor) -> dict[str, KerasTensor]:
        """One iteration, readable: the reference for the traced loop below.

        Args:
            latents: `(B, R, Z)`.
        """
        rounds = self.prepare_rounds(latents)
        for index in range(latents.shape[1] - 1):
            self.student_round(rounds, index)
        self.generator_round(latents)
        self.check()
        return self.term_means()

    def prepare_rounds(self, latents: KerasTensor) -> dict[str, Any]:
        """Images of all student rounds, and the teachers' answers to them.

        Neither teachers nor generator move during the student's rounds, so the
        teachers see all images as one large batch. The generator runs round by
        round: its BatchNormalizations use the round's own statistics.

        Returns:
            `images` and the teachers' answers, each with a leading axis R - 1.
        """
        num_rounds = latents.shape[1] - 1
        images = ops.concatenate(
            [self.generator(latents[:, k], training=True) for k in range(num_rounds)]
        )
        answers = {"images": images, "teachers": self.ask_teachers(images)}
        return tf.nest.map_structure(
            lambda tensor: ops.reshape(tensor, (num_rounds, -1, *tensor.shape[1:])),
            answers,
        )

    def student_round(self, rounds: dict[str, Any], index: int | tf.Tensor) -> None:
        """Student update number `index` on what `prepare_rounds` made."""
        chosen = tf.nest.map_structure(lambda tensor: tensor[index], rounds)
        self.update_student(chosen["images"], chosen["teachers"])

    def generator_round(self, latents: KerasTensor) -> None:
        """The generator's update, on the last of the rounds' noise."""
        self.update_generator(latents[:, -1])

    def update_generator(self, noise: KerasTensor) -> None:
        """Moves the generator alone; student and teachers only lend gradients.

        Args:
            noise: `(B, Z)`.
        """
        statistics = self.student.non_trainable_variables
        if self.generator_moves_statistics:
            statistics = []
        with unmoved(statistics), tf.GradientTape() as tape:
            images = self.generator(noise, training=True)
            teachers = self.opponents(images, frozenset({"bn_statistics"}))._asdict()
            images = teachers.get("images", images)
            if not self.method.teacher_gradient:
                teachers["logits"] = ops.stop_gradient(teachers["logits"])
            loss = self.weigh("generator", images, teachers)
            # Inside the tape: replicas sum gradients, low precision scales them.
            loss = self.generator_optimizer.scale_loss(loss / self.num_replicas)
        variables = self.generator.trainable_variables
        self.move(self.generator_optimizer, tape, loss, variables)

    def iterate(self, data: KerasTensor) -> None:
        """The same updates as one traced loop, not R copies of the student's round.

        Five unrolled rounds trace several times longer. The loop stands outside
        `strategy.run`: inside, optimisers cannot meet across replicas.
        """
        strategy = self.distribute_strategy
        prepare, student_round, generator_round = map(
            self.in_graph,
            (self.prepare_rounds, self.student_round, self.generator_round),
        )
        num_rounds = strategy.experimental_local_results(data)[0].shape[1] - 1
        rounds = strategy.run(prepare, args=(data,))
        for index in tf.range(num_rounds):
            strategy.run(student_round, args=(rounds, index))
        strategy.run(generator_round, args=(data,))
        strategy.run(plain(self.check))
