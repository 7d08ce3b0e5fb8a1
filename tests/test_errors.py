"""What users are told where something goes wrong."""

import errno

import pytest
import tensorflow as tf

from cdfkd_tf.errors import (
    RequestError,
    RunError,
    file_system_error,
    lookup,
    one_line,
    reason,
)


def test_one_line_joins_and_leaves_out_the_middle():
    """Libraries tell what they did first, and the cause last."""
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("aaabbbbccc", limit=9) == "aaa ... bbbccc"


def test_reason_is_a_sentence():
    assert reason(ValueError("No. Yes")) == "No. Yes."
    assert reason("Why?") == "Why?" and reason(KeyError("a\nb")).endswith(".")


def test_lookup_lists_what_is_known():
    assert lookup({"a": 1}, "a", "letter") == 1
    with pytest.raises(RequestError, match=r"Unknown letter 'c'\. Known: a, b\."):
        lookup({"a": 1, "b": 2}, "c", "letter")


def test_file_system_error_makes_refusals_a_wrong_request():
    for error, words in [
        (
            FileExistsError(errno.EEXIST, "File exists", "/x/a/b"),
            "Cannot use /x/a/b: a file is in the place of a folder",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/.a.json.tmp"),
            "Cannot use /x: Permission denied",  # not the name of the half file
        ),
        (
            tf.errors.PermissionDeniedError(None, None, "/x y/ckpt; Permission denied"),
            "Cannot use /x y/ckpt: Permission denied",
        ),
    ]:
        told = file_system_error(error)
        assert isinstance(told, RequestError) and words in str(told)


def test_file_system_error_of_a_full_disk_is_a_failed_run():
    for error in [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        tf.errors.ResourceExhaustedError(
            None, None, "/x/a.index; No space left on device"
        ),
    ]:
        told = file_system_error(error)
        assert isinstance(told, RunError) and "Make room" in str(told)


def test_file_system_error_leaves_other_errors_alone():
    for error in [
        ValueError("a table says: File exists in /x/a"),  # B18: anybody may write that
        KeyError("No such file or directory: /x/b"),
        RequestError("Cannot read /x/a: Permission denied."),
        OSError("File exists"),  # without any path there is nothing to say
        RuntimeError("anything else"),
    ]:
        assert file_system_error(error) is error
