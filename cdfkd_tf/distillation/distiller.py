"""One student learning from frozen teachers, on images that somebody provides."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.distillation.methods import Answers, Method, terms_of
from cdfkd_tf.distillation.numerics import apply_gradients, check_finite, checked_term
from cdfkd_tf.errors import RequestError


class Distiller(keras.Model):
    """Moves a student towards its teachers.

    Args:
        student: images to `{"logits": (B, H, C), "features": (B, H, W)}`.
        teachers: see `TeacherEnsemble`.
        method: which terms weigh what.
        projection: maps the student's features to the teachers' widths and learns
            with the student, see `build_projection`; None: the widths are equal.
        teacher_policy: dtype policy that teachers compute in; None: their own.

    Raises:
        RequestError: if headers, teachers and the method's terms do not fit together.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Any,
        method: Method,
        *,
        projection: keras.Model | None = None,
        teacher_policy: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_fit(student, teachers, method, projection)
        self.student, self.teachers, self.method = student, teachers, method
        self.projection, self.teacher_policy = projection, teacher_policy
        self.weights_of = {"student": method.student, "generator": method.generator}
        self.trackers = {
            f"{player}_{term}": keras.metrics.Mean(name=f"{player}_{term}")
            for player in ("student", "generator")
            for term, weight in self.weights_of[player].items()
            if weight
        }
        self.num_headers = student.output["logits"].shape[1]
        headers = [f"header_{header}_accuracy" for header in range(self.num_headers)]
        self.accuracies = {
            name: keras.metrics.SparseCategoricalAccuracy(name=name)
            for name in ("accuracy", *headers)
        }
        # fit() would otherwise call the model on latents to build it.
        self.built = True

    def compile(
        self,
        student_optimizer: keras.optimizers.Optimizer,
        clip_gradients: float = 0.0,
        xla: bool = False,
        **kwargs,
    ):
        """Sets the student's optimiser and builds its state, so that it can be saved.

        Args:
            student_optimizer: moves the student's trainable variables.
            clip_gradients: largest global norm of a player's gradient; 0: any.
            xla: compile each update with XLA; one replica only.
            **kwargs: as in `keras.Model.compile`.
        """
        kwargs.setdefault("jit_compile", False)  # the loop is ours: see `iterate`
        self.xla = xla
        super().compile(optimizer=student_optimizer, **kwargs)
        self.clip_gradients = clip_gradients
        student_optimizer.build(self.student_variables)

    @property
    def student_variables(self) -> list[keras.Variable]:
        """What the student's optimiser moves."""
        extra = self.projection.trainable_variables if self.projection else []
        return [*self.student.trainable_variables, *extra]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` resets at each epoch."""
        return [*self.trackers.values(), *self.accuracies.values()]

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on: name -> network or optimiser."""
        state = {"student": self.student, "student_optimizer": self.optimizer}
        return {**state, **({"projection": self.projection} if self.projection else {})}

    @property
    def num_replicas(self) -> int:
        """Replicas that train together."""
        return self.distribute_strategy.num_replicas_in_sync

    def call(self, images: KerasTensor, training: bool = False) -> dict:
        """The student's answer to normalised images."""
        return self.student(images, training=training)

    def train_step(self, data) -> dict[str, KerasTensor]:
        """One student update on real images. `data`: `(images, labels)`."""
        images = data[0] if isinstance(data, tuple) else data
        self.learn(images)
        self.check()
        return self.term_means()

    def learn(self, images: KerasTensor) -> None:
        """What the teachers say about real images, and one student update on it."""
        self.update_student(images, self.ask_teachers(images))

    def check(self) -> None:
        """Ends the step where something left the numbers, see `check_finite`."""
        check_finite(self.state)

    def test_step(self, data) -> dict[str, KerasTensor]:
        """Accuracy of each header and of their mean. `data`: `(images, labels)`."""
        images, labels = data
        logits = self.student(images, training=False)["logits"]
        self.accuracies["accuracy"].update_state(labels, ops.mean(logits, axis=1))
        for header in range(self.num_headers):
            tracker = self.accuracies[f"header_{header}_accuracy"]
            tracker.update_state(labels, logits[:, header])
        return {name: tracker.result() for name, tracker in self.accuracies.items()}

    def iterate(self, data: Any) -> None:
        """One iteration on all replicas. `data`: one element of the data set."""
        images = data[0] if isinstance(data, tuple) else data
        learn, check = self.in_graph(self.learn), plain(self.check)
        self.distribute_strategy.run(learn, args=(images,))
        self.distribute_strategy.run(check)

    def in_graph(self, update: Callable) -> Callable:
        """An update as `iterate` calls it: not rewritten, compiled if asked for.

        XLA leaves out checks, so they stand outside, see safety.py.
        """
        if self.xla:
            return tf.function(update, jit_compile=True, autograph=False)
        return plain(update)

    def make_train_function(self, force: bool = False):
        """As Keras's, and for several hosts, where Keras's own fails.

        Teachers compute as they now stand, and faster, see `TeacherEnsemble`.
        """
        if self.train_function is not None and not force:
            return self.train_function
        self.teachers.optimise_for_inference(self.teacher_policy)
        if self.run_eagerly:
            return super().make_train_function(force)

        @tf.function(reduce_retracing=True)
        def train_function(iterator):
            if self.steps_per_execution == 1:
                self.iterate(next(iterator))
            else:
                for _ in tf.range(self.steps_per_execution):
                    self.iterate(next(iterator))
            return self.term_means()

        self.train_function = train_function
        return train_function

    def make_test_function(self, force: bool = False):
        """As Keras's, and for several hosts, where Keras's own fails."""
        if self.test_function is not None and not force:
            return self.test_function
        if self.run_eagerly:
            return super().make_test_function(force)

        @tf.function(reduce_retracing=True)
        def test_function(iterator):
            self.distribute_strategy.run(self.test_step, args=(next(iterator),))
            return {name: it.result() for name, it in self.accuracies.items()}

        self.test_function = test_function
        return test_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing is left to build; Keras's way fails where hosts share a batch."""

    def ask_teachers(self, images: KerasTensor) -> dict[str, Any]:
        """The teachers' logits and features, without BatchNorm inputs."""
        outputs = self.teachers(images)
        shown = [values for values in outputs.features if values is not None]
        return {"logits": outputs.logits, "features": shown}

    def update_student(self, images: KerasTensor, teachers: dict[str, Any]) -> None:
        """Moves the student alone, by one gradient step.

        Args:
            images: `(B, height, width, channels)`, normalised.
            teachers: what `ask_teachers` said of them.
        """
        with tf.GradientTape() as tape:
            loss = self.weigh("student", images, {**teachers, "bn": []})
            # Inside the tape: replicas sum gradients, low precision scales them.
            loss = self.optimizer.scale_loss(loss / self.num_replicas)
        self.move(self.optimizer, tape, loss, self.student_variables)

    def move(self, optimizer, tape, loss, variables) -> None:
        """One step of `optimizer` down the gradient of the scaled loss."""
        gradients = tape.gradient(loss, variables)
        apply_gradients(optimizer, gradients, variables, clip=self.clip_gradients)

    def weigh(self, player: str, images: KerasTensor, teachers: dict) -> KerasTensor:
        """What `player` minimises on `images`; logs each term's true value."""
        said = self.student(images, training=True)
        features = said["features"]
        answers = Answers(
            student_logits=said["logits"],
            student_features=self.projection(features) if self.projection else features,
            teacher_logits=teachers["logits"],
            teacher_features=teachers["features"],
            teacher_bn=teachers["bn"],
        )
        weights = self.weights_of[player]
        terms = {
            name: checked_term(value, f"{player}_{name}")
            for name, value in terms_of(answers, weights, self.method).items()
        }
        for name, value in terms.items():
            self.trackers[f"{player}_{name}"].update_state(value)
        return sum(weights[name] * value for name, value in terms.items())

    def term_means(self) -> dict[str, KerasTensor]:
        """Running mean of each term over the epoch, by name."""
        return {name: tracker.result() for name, tracker in self.trackers.items()}


# Only `iterate` needs rewriting as a graph; to rewrite what it calls takes seconds.
plain = tf.autograph.experimental.do_not_convert


def _check_fit(
    student: keras.Model, teachers: Any, method: Method, projection: keras.Model | None
) -> None:
    num_headers, num_classes = student.output["logits"].shape[1:]
    if num_classes != teachers.num_classes:
        raise RequestError(
            f"The student answers {num_classes} classes, the teachers "
            f"{teachers.num_classes}. Check --dataset and --teachers."
        )
    needs_header = method.student.get("header") or method.generator.get("header")
    if needs_header and num_headers != len(teachers):
        raise RequestError(
            f"The header term needs one header per teacher; the student has "
            f"{num_headers} headers and there are {len(teachers)} teachers. Use "
            "--student_headers=multi_level or split."
        )
    if method.student.get("feature"):
        widths = {teacher.feature_width for teacher in teachers.teachers}
        width = student.output["features"].shape[-1]
        known = sorted(widths, key=lambda width: width or 0)
        fits = widths == {width} or (projection and None not in widths)
        if not fits or num_headers != len(teachers):
            raise RequestError(
                f"The feature term compares equal widths, header by teacher; the "
                f"student's {num_headers} headers are {width} wide, the "
                f"{len(teachers)} teachers' features {known}. Use "
                "--student_feature_weight=0, or a student of the teachers' width."
            )
    if method.generator.get("bn") and not any(
        teacher.num_batch_norms for teacher in teachers.teachers
    ):
        raise RequestError(
            "The bn term reads the teachers' BatchNormalization statistics, and no "
            "teacher has any. Use --generator_bn_weight=0."
        )
