"""A file is whole or not there."""

import pytest

from cdfkd_tf.runtime.files import replacing


def test_replacing_makes_the_file_appear_at_the_end(tmp_path):
    file = tmp_path / "new/folder/a.txt"
    with replacing(file) as temporary:
        temporary.write_text("whole")
        assert not file.exists() and temporary.suffix == ".txt"
    assert file.read_text() == "whole"
    assert list(file.parent.iterdir()) == [file]


def test_replacing_leaves_the_old_file_alone_after_a_failure(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(file) as temporary:
        temporary.write_text("hal")
        raise OSError("disk full")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
