"""Work in a process of its own: its result, its death, its time."""

import os
import time

from cdfkd_tf.runtime.child_process import in_child


def test_a_child_that_dies_or_never_ends_gives_nothing():
    assert in_child(lambda: {"arena_bytes": 16}) == {"arena_bytes": 16}
    assert in_child(os.abort) is None
    assert in_child(lambda: time.sleep(600) or {}, seconds=0.2) is None
