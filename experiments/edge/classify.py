"""Classifies pictures on a device: python classify.py student_int8.tflite a.png b.jpg

Needs numpy, pillow and ai-edge-litert. The file contains class names and sizes.
"""

import json
import sys
import time
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps


def load_image(name: str, about: dict) -> np.ndarray:
    """A picture as the network takes it: `(1, height, width, channels)`, 0 to 255."""
    size = (about["width"], about["height"])
    picture = ImageOps.exif_transpose(Image.open(name))
    picture = picture.convert("L" if about["channels"] == 1 else "RGB")
    if about["shorter_side"]:  # scaled, then cropped in the centre
        factor = about["shorter_side"] / min(picture.size)
        scaled = [max(1, round(side * factor)) for side in picture.size]
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = ((a - b) // 2 for a, b in zip(picture.size, size))
        picture = picture.crop((left, top, left + size[0], top + size[1]))
    elif picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(1, *size[::-1], about["channels"])


def main(model: str, *pictures: str) -> None:
    """Prints class, probability and time for every picture."""
    with zipfile.ZipFile(model) as attached:
        about = json.loads(attached.read("metadata.json"))
    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    (entry,), (leave,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    scale, zero = leave["quantization"]
    for name in pictures:
        pixels = load_image(name, about["input"])
        if entry["dtype"] == np.float32:  # other formats than int8 take [0, 1]
            pixels = pixels.astype("float32") / 255
        interpreter.set_tensor(entry["index"], pixels)
        start = time.perf_counter()
        interpreter.invoke()
        milliseconds = 1000 * (time.perf_counter() - start)
        output = interpreter.get_tensor(leave["index"])[0]
        probabilities = (output.astype("float32") - zero) * scale if scale else output
        best = probabilities.argmax()
        label = about["classes"][best]
        print(f"{name}  {label}  {probabilities[best]:.1%}  {milliseconds:.2f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
