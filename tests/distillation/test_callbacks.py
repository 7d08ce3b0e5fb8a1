"""What a person can watch is there, and watching changes nothing."""

import math

import numpy as np
import pytest
import tensorflow as tf
from cdfkd_tf.distillation.callbacks import (
    Curves,
    InventedImages,
    Inventor,
    Profile,
    StopOnNaN,
    tile,
)
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from cdfkd_tf.data.noise import latent_dataset
from cdfkd_tf.errors import RunError
from tests.conftest import LATENT, latents, moved, tiny_distiller, values_of


def invented(distiller, folder):
    return InventedImages(
        Inventor(
            distiller.generator,
            lambda images: distiller.teachers(images)["logits"][:, :1],
        ),
        latents()[:, 0],
        lambda images: images * 0.2 + 0.5,
        folder / "samples",
        folder / "logs",
    )


def test_pictures_and_curves_are_written(tmp_path):
    distiller = tiny_distiller()
    curves = Curves(tmp_path / "logs", {"student": distiller.optimizer}, 48)
    history = distiller.fit(
        latent_dataset(8, 3, LATENT, seed=0),
        epochs=2,
        steps_per_epoch=2,
        callbacks=[curves, invented(distiller, tmp_path)],
        verbose=0,
    ).history
    pictures = sorted(file.name for file in (tmp_path / "samples").iterdir())
    assert pictures == ["epoch_0001.png", "epoch_0002.png"]
    assert Image.open(tmp_path / "samples" / pictures[0]).width >= 256
    events = {}
    for file in (tmp_path / "logs").iterdir():
        log = event_accumulator.EventAccumulator(str(file)).Reload()
        for tag in log.Tags()["tensors"]:
            events[tag] = log.Tensors(tag)
    assert {"student_header", "generator_bn", "student_learning_rate"} <= set(events)
    assert {"invented_images", "invented_class", "invented_classes"} <= set(events)
    last = events["generator_bn"][-1]
    assert last.step == 2
    value = np.frombuffer(last.tensor_proto.tensor_content, "float32")
    np.testing.assert_allclose(value, history["generator_bn"][-1], rtol=1e-6)


def test_looking_moves_nothing(tmp_path):
    distiller = tiny_distiller()
    before = values_of(distiller.generator)
    callback = invented(distiller, tmp_path)
    callback.on_train_begin()
    callback.on_epoch_end(0)
    assert moved(before, values_of(distiller.generator)) == set()


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_show_each_image_once(channels):
    images = np.random.default_rng(0).uniform(size=(10, 8, 8, channels))
    picture = np.asarray(tile(images)).reshape(-1, tile(images).width, channels)
    scale = 512 // (8 * 9)
    assert picture.shape == (2 * 9 * scale, 8 * 9 * scale, channels)
    second = picture[::scale][:8, ::scale][:, 9 : 9 + 8]
    np.testing.assert_array_equal(second, np.rint(images[1] * 255))


def test_nan_ends_the_run_with_its_name():
    with pytest.raises(RunError, match="student_header became nan in epoch 3"):
        StopOnNaN().on_epoch_end(2, {"generator_bn": 1.0, "student_header": math.nan})


@pytest.mark.parametrize("steps, written", [(2, 0), (4, 1), (9, 1)])
def test_a_profile_covers_a_few_steps_however_short_the_run(steps, written, tmp_path):
    profile = Profile(tmp_path)
    for step in range(steps):
        profile.on_train_batch_begin(step)
        tf.add(step, 1)
        profile.on_train_batch_end(step)
    profile.on_train_end()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == written
