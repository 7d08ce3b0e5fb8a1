"""The training loop: student steps, then the image source's own step."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.distillation import numerics
from cdfkd_tf.distillation.image_source import Batch, ImageSource
from cdfkd_tf.distillation.losses import Objective, Outputs
from cdfkd_tf.distillation.methods import Method
from cdfkd_tf.networks.students import feature_maps_model
from cdfkd_tf.runtime import keras_internals
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

# Only `train_step` needs rewriting as a graph; to rewrite what it calls takes seconds.
_as_written = tf.autograph.experimental.do_not_convert


class Distiller(keras_internals.WithoutSymbolicBuild, keras.Model):
    """Moves a student towards its teachers, on the images of one source.

    Args:
        student: normalised images to `{"logits": (B, H, C), "features": (B, H, W)}`.
        teachers: frozen.
        method: which terms weigh what.
        source: where images come from.
        projection: maps the student's features to the teachers' widths and learns
            with the student, see `build_projection`; None: the widths are equal.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: TeacherEnsemble,
        method: Method,
        source: ImageSource,
        *,
        projection: keras.Model | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.student, self.teachers, self.method = student, teachers, method
        self.source, self.projection = source, projection
        self.objective = Objective("student", method)
        self.trackers = {**self.objective.trackers, **source.trackers}
        # What is called: the student, with its maps beside where a term reads them.
        reads_maps = "feature_maps" in self.objective.needs | source.needs
        self.forward = feature_maps_model(student) if reads_maps else student
        headers = range(student.output["logits"].shape[1])
        self.accuracies = {
            name: keras.metrics.SparseCategoricalAccuracy(name=name)
            for name in ("accuracy", *(f"header_{h}_accuracy" for h in headers))
        }
        # fit() would otherwise call the model on latents to build it.
        self.built = True

    def compile(
        self,
        student_optimizer: keras.optimizers.Optimizer,
        clip_gradients: float = 0.0,
        xla: bool = False,
        **kwargs,
    ) -> None:
        """Sets the student's optimiser and builds its state, so that it can be saved.

        Args:
            student_optimizer: moves the student's trainable variables.
            clip_gradients: largest global norm of the student's gradient; 0: any.
            xla: compile each update with XLA; one replica only.
            **kwargs: as in `keras.Model.compile`.
        """
        kwargs.setdefault("jit_compile", False)  # see `_compiled`
        self.xla, self.clip_gradients = xla, clip_gradients
        super().compile(optimizer=student_optimizer, **kwargs)
        student_optimizer.build(self.student_variables)

    @property
    def student_variables(self) -> list[keras.Variable]:
        """What the student's optimiser moves: floats, of any shape."""
        extra = self.projection.trainable_variables if self.projection else []
        variables = [*self.student.trainable_variables, *extra]
        return list(filter(numerics.is_float, variables))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` resets at each epoch."""
        return [*self.trackers.values(), *self.accuracies.values()]

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on: name -> network or optimiser."""
        state = {"student": self.student, "student_optimizer": self.optimizer}
        if self.projection:
            state["projection"] = self.projection
        return {**state, **self.source.state}

    def train_step(self, data: Any) -> dict[str, KerasTensor]:
        """One iteration on all replicas: K student steps, then the source's own step.

        The loop stands outside `strategy.run`: inside it, optimisers cannot meet
        across replicas, and K unrolled steps trace several times longer.

        Args:
            data: one element of the source's data set.

        Returns:
            Running mean of each term over the epoch, a scalar, by name.
        """
        run = self.distribute_strategy.run
        batches = run(self._compiled(self.prepare), args=(data,))
        for step in tf.range(self.source.student_steps):
            run(self._compiled(self.student_step), args=(batches, step))
        run(self._compiled(self.source_step), args=(data,))
        run(_as_written(lambda: numerics.check_finite(self.state)))
        return self.term_means()

    def prepare(self, data: Any) -> Batch:
        """The images of all student steps, and the teachers' outputs for them.

        Neither teachers nor generator move during the student's steps, so that the
        teachers see all images as one large batch.

        Args:
            data: a replica's part of an element of the source's data set.

        Returns:
            Images `(K, B, ...)`, logits `(K, B, T, C)`, features `(K, B, W_i)`.
        """
        batch = self.source.next_batches(data)
        if batch.teachers is not None:
            return batch
        steps, *shape = batch.images.shape
        images = ops.reshape(batch.images, (-1, *shape[1:]))
        outputs = self.teachers(images, self.objective.needs - {"bn_statistics"})
        known = [features for features in outputs.features if features is not None]
        outputs = tf.nest.map_structure(
            lambda tensor: ops.reshape(tensor, (steps, -1, *tensor.shape[1:])),
            outputs._replace(features=known),
        )
        return Batch(batch.images, outputs)

    def student_step(self, batches: Batch, step: int | KerasTensor) -> None:
        """Moves the student alone, by one gradient step.

        Args:
            batches: what `prepare` made.
            step: which of them, from 0 on.
        """
        images, teachers = tf.nest.map_structure(lambda t: t[step], batches)
        images = self.source.normalise(images)

        def loss():
            outputs = dict(self.forward(images, training=True))
            if self.projection:
                outputs["features"] = self.projection(outputs["features"])
            return self.objective(Outputs(outputs, teachers, self.teachers.rule))

        numerics.minimise(
            loss, self.optimizer, self.student_variables, clip=self.clip_gradients
        )

    def source_step(self, data: Any) -> None:
        """The image source's own step, see `ImageSource.update`."""
        self.source.update(data, self.forward)

    def test_step(self, data: Any) -> dict[str, KerasTensor]:
        """Accuracy in [0, 1] so far, of each header and of all, joined, by name.

        Args:
            data: normalised images `(B, height, width, channels)`, labels `(B,)`.
        """
        images, labels = data
        logits = self.student(images, training=False)["logits"]
        columns = [self.teachers.combined(logits), *ops.unstack(logits, axis=1)]
        for tracker, column in zip(self.accuracies.values(), columns):
            tracker.update_state(labels, column)
        return {name: tracker.result() for name, tracker in self.accuracies.items()}

    def make_train_function(self, force: bool = False) -> Callable:
        """What `fit` calls at each step: `train_step`, traced or eager.

        Keras's own wraps `train_step` in `strategy.run`, which fails here and where
        several hosts train.
        """
        if self.train_function is None or force:

            def train_function(iterator):
                return self.train_step(next(iterator))

            self.train_function = self._traced(train_function)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        """As Keras's, and for several hosts, where Keras's own fails."""
        if self.test_function is None or force:

            def test_function(iterator):
                self.distribute_strategy.run(self.test_step, args=(next(iterator),))
                return {name: it.result() for name, it in self.accuracies.items()}

            self.test_function = self._traced(test_function)
        return self.test_function

    def term_means(self) -> dict[str, KerasTensor]:
        """Running mean of each term over the epoch, a scalar, by name."""
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def _traced(self, function: Callable) -> Callable:
        if self.run_eagerly:
            return function
        return tf.function(function, reduce_retracing=True)

    def _compiled(self, update: Callable) -> Callable:
        """An update as `train_step` calls it: compiled with XLA if asked for.

        XLA leaves out checks, so these stand outside, see numerics.py.
        """
        if self.xla:
            return tf.function(update, jit_compile=True, autograph=False)
        return _as_written(update)
