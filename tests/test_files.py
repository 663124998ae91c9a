import json

import pytest

from fcn_jax.files import replacing, write_json


def test_replacing_moves_the_whole_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as unfinished:
        unfinished.write_text("ha")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"iu": [0.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"iu": [0.5, None]}
