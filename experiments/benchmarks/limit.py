"""What this machine's matrix products reach: the limit of any network's speed here.

python -m experiments.benchmarks.limit

Prints GFLOP/s in float32 and bfloat16, the better of TensorFlow's and PyTorch's median
over square products of several sizes.
"""

import json
import statistics
import time

SIZES, REPEATS = (1024, 2048, 4096), 7


def with_tensorflow(dtype: str, size: int) -> list[float]:
    """Seconds of each product."""
    import tensorflow as tf

    a, b = (tf.cast(tf.random.normal((size, size)), dtype) for _ in range(2))
    product = tf.function(lambda a, b: tf.matmul(a, b)[:1, :1])
    return timed(lambda: product(a, b).numpy())


def with_pytorch(dtype: str, size: int) -> list[float]:
    """The same."""
    import torch

    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    return timed(lambda: a @ b)


def timed(run) -> list[float]:
    """Seconds of each run after two warm ones."""
    seconds = []
    for _ in range(REPEATS + 2):
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return seconds[2:]


def main():
    reached = {
        dtype: max(
            2 * size**3 / statistics.median(run(dtype, size)) / 1e9
            for size in SIZES
            for run in (with_tensorflow, with_pytorch)
        )
        for dtype in ("float32", "bfloat16")
    }
    print(json.dumps(reached))


if __name__ == "__main__":
    main()
