"""Every exported file is loaded again and answers like Keras."""

import numpy as np
import pytest

from cdfkd_tf.errors import RunError
from cdfkd_tf.export import calibration_pixels, check_export, export_predictor
from cdfkd_tf.models import build_student
from cdfkd_tf.models.aggregation import AGGREGATORS, build_aggregator, build_predictor

PIXELS = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype("float32")
BATCHES = [(PIXELS[:12], None), (PIXELS[12:], None)]


def predictor_with(kind):
    student = build_student("wrn10_1", (8, 8, 1), 4, 3, width=0.5)
    aggregator = build_aggregator(kind, student)
    rng = np.random.default_rng(1)
    aggregator.set_weights([rng.normal(size=w.shape) for w in aggregator.get_weights()])
    return build_predictor(student, aggregator, (0.4,), (0.3,))


@pytest.mark.parametrize("kind", sorted(AGGREGATORS))
def test_every_aggregator_exports_to_every_format(kind, tmp_path):
    predictor = predictor_with(kind)
    formats = ("saved_model", "tflite_float32", "tflite_int8")
    files = export_predictor(predictor, formats, tmp_path, calibration_pixels(PIXELS))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "saved_model",
        "student_float32.tflite",
        "student_int8.tflite",
    ]
    labels = predictor.predict(PIXELS, verbose=0).argmax(-1)
    for name, path in files.items():
        figures = check_export(name, path, predictor, [(PIXELS, labels)])
        assert figures["accuracy"] == figures["agreement"]
        if name == "tflite_int8":
            assert figures["max_abs_difference"] < 0.25
        else:
            assert figures["agreement"] == 1
            assert figures["max_abs_difference"] < 1e-5


def test_int8_takes_and_gives_bytes(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    files = export_predictor(
        predictor_with("mean"), ("tflite_int8",), tmp_path, calibration_pixels(PIXELS)
    )
    interpreter = Interpreter(str(files["tflite_int8"]))
    (entry,), (leave,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    assert entry["dtype"] == leave["dtype"] == np.uint8
    # A byte is a grey value: the whole range of pixels fits, none saturates.
    np.testing.assert_allclose(entry["quantization"], (1 / 255, 0), atol=1e-4)


def test_calibration_covers_black_to_white():
    images = calibration_pixels(
        np.full((3, 8, 8, 1), 0.5) * [[[[1]]], [[[-2]]], [[[9]]]]
    )
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.float32
    assert images[3].min() == 0 and images[3].max() == 1
    assert images[1].min() == 0 and images[2].max() == 1


def test_a_float_file_that_answers_otherwise_is_refused(tmp_path):
    files = export_predictor(
        predictor_with("mean"), ("tflite_float32",), tmp_path, PIXELS
    )
    other = predictor_with("weights")
    with pytest.raises(RunError, match="answers otherwise than the Keras model"):
        check_export("tflite_float32", files["tflite_float32"], other, BATCHES)
