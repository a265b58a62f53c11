from __future__ import annotations

import errno
import json

import pytest

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import atomic_write, write_bytes, write_json, write_text


def test_the_file_appears_whole_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "results.txt"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(CheckpointError) as error, atomic_write(path) as temporary:
        temporary.write_bytes(bytes(3 << 20))
        raise OSError(errno.ENOSPC, "No space left on device")
    message = str(error.value)
    assert all(word in message for word in (str(path), "3.0 MiB needed", "MiB free", str(tmp_path)))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_operating_system_errors_pass_through(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
        raise PermissionError(errno.EACCES, "no")


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with (
        pytest.raises(CheckpointError, match="nothing was written"),
        atomic_write(tmp_path / "a.txt"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_bytes(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": ["é", None, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1, "a": ["é", None, 2.5]}
    assert path.read_text(encoding="utf-8").index('"a"') < path.read_text().index('"b"')
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(CheckpointError, match=r"a\.json cannot be written as JSON"):
            write_json(path, bad)
    assert json.loads(path.read_text())["b"] == 1
