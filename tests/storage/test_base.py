from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import load_base, save_base, save_safetensors

TREE = {
    "stage0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "scale": jnp.ones(2, jnp.bfloat16),
}


def test_round_trip(tmp_path):
    mark = save_base(tmp_path / "bases", TREE)
    tree = load_base(tmp_path / "bases", mark)
    np.testing.assert_array_equal(tree["stage0"]["kernel"], TREE["stage0"]["kernel"])
    assert tree["scale"].dtype == jnp.bfloat16


def test_stored_once(tmp_path):
    mark = save_base(tmp_path, TREE)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert save_base(tmp_path, TREE) == mark
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert save_base(tmp_path, {"scale": TREE["scale"]}) != mark
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_copy_is_noticed_and_replaced(tmp_path):
    mark = save_base(tmp_path, TREE)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged.*expected {mark}"):
        load_base(tmp_path, mark)
    path.write_bytes(content[:40])
    with pytest.raises(CheckpointError, match=f"{path.name} is not a whole"):
        load_base(tmp_path, mark)
    assert save_base(tmp_path, TREE) == mark
    load_base(tmp_path, mark)


def test_a_missing_base_says_what_is_there(tmp_path):
    mark = "sha256:" + "0" * 64
    with pytest.raises(CheckpointError, match="found no base at all"):
        load_base(tmp_path, mark)
    save_base(tmp_path, TREE)
    (path,) = tmp_path.iterdir()
    with pytest.raises(CheckpointError, match=f"found {path.name}"):
        load_base(tmp_path, mark)


def test_a_swapped_file_is_noticed(tmp_path):
    mark = save_base(tmp_path, TREE)
    (path,) = tmp_path.iterdir()
    save_safetensors(path, {"scale": np.ones(2)}, {"fingerprint": mark})
    with pytest.raises(CheckpointError, match="was changed"):
        load_base(tmp_path, mark)


def test_not_a_fingerprint(tmp_path):
    with pytest.raises(CheckpointError, match="'abc' is not a fingerprint"):
        load_base(tmp_path, "abc")
