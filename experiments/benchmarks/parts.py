"""What the parts of one iteration cost, and which operations are busiest in each.

    python -m experiments.benchmarks.parts --case=wrn --policy=float32

Each part is traced alone and run under TensorFlow's profiler. Busy time is summed over
threads, so that it may exceed the wall time.
"""

import argparse
import collections
import pathlib
import tempfile
import time

from experiments.benchmarks.cases import CASES
from experiments.benchmarks.engine_loop import build, config_of

REPEATS, SHOWN = 4, 12


def busy_milliseconds(folder: str) -> tuple[dict[str, float], dict[str, int]]:
    """Of each kind of operation, and how often it ran, in the newest profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    files = pathlib.Path(folder).rglob("*.xplane.pb")
    newest = max(files, key=lambda file: file.stat().st_mtime)
    space = xplane_pb2.XSpace()
    space.ParseFromString(newest.read_bytes())
    busy, count = collections.Counter(), collections.Counter()
    for plane in space.planes:
        for line in plane.lines if "CPU" in plane.name else ():
            for event in line.events:
                # Operations are called `name:Kind`.
                name = plane.event_metadata[event.metadata_id].name
                _, colon, kind = name.rpartition(":")
                if colon and kind.isidentifier():
                    busy[kind] += event.duration_ps / 1e9
                    count[kind] += 1
    return busy, count


def show(name: str, part) -> None:
    """Runs `part` and prints its time and busiest operations."""
    import tensorflow as tf

    part(), part()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(REPEATS):
            before = time.perf_counter()
            part()
            seconds.append(time.perf_counter() - before)
        tf.profiler.experimental.stop()
        busy, count = busy_milliseconds(folder)
    print(f"\n{name}: {1000 * sorted(seconds)[REPEATS // 2]:.0f} ms")
    for kind, spent in busy.most_common(SHOWN):
        print(f"{spent / REPEATS:9.1f} ms {count[kind] // REPEATS:5} {kind}")


def main() -> None:
    """Prints three parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--policy", default="float32")
    arguments = parser.parse_args()
    from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow

    quiet_tensorflow()
    import keras
    import tensorflow as tf

    from cdfkd_tf.runtime.precision import make_deterministic

    keras.utils.set_random_seed(0)
    case = CASES[arguments.case]
    config = config_of(case, dtype_policy=arguments.policy)
    make_deterministic(config.deterministic)
    distiller = build(case, config)
    noise = next(iter(distiller.source.dataset(0)))
    batches = tf.function(distiller.prepare)(noise)
    prepare = tf.function(lambda: distiller.prepare(noise))
    student_step = tf.function(lambda: distiller.student_step(batches, tf.constant(1)))
    generator_step = tf.function(lambda: distiller.source_step(noise))
    show("images of all student steps and the teachers' logits", prepare)
    show(f"one of {case.student_steps} student steps", student_step)
    show("the generator step", generator_step)


if __name__ == "__main__":
    main()
