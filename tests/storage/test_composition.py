from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

from sinewich_jax import storage
from sinewich_jax.core.trees import flatten_paths
from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage import composition_facts, load_composition, save_composition

BASE = {"encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}


def parts():
    rng = np.random.default_rng(0)
    return {
        "adapters": {"layer0": {"down": rng.normal(size=(2, 3, 4)).astype(np.float32)}},
        "fusion": {"layer0": {"value": rng.normal(size=(3, 3)).astype(np.float32)}},
        "head": {"kernel": rng.normal(size=(3, 2)).astype(np.float16)},
    }


@pytest.fixture
def file(tmp_path):
    save_composition(tmp_path / "all.safetensors", parts(), BASE, {"names": ["a", "b"]})
    return tmp_path / "all.safetensors"


def test_a_round_trip_is_bit_exact(file):
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts())
    found = load_composition(file, like, BASE)
    assert found.facts == {"names": ["a", "b"]} and found.parts.keys() == parts().keys()
    for path, leaf in flatten_paths(parts()).items():
        again = flatten_paths(found.parts)[path]
        assert again.dtype == leaf.dtype
        np.testing.assert_array_equal(again, leaf)


def test_a_fresh_process_reads_the_same_bits(file):
    program = (
        "from tests.storage.test_composition import BASE, parts; import sys; "
        "from sinewich_jax.core.trees import flatten_paths; "
        "from sinewich_jax.storage import load_composition; "
        "found = flatten_paths(load_composition(sys.argv[1], parts(), BASE).parts); "
        "assert all(found[p].tobytes() == l.tobytes() for p, l in flatten_paths(parts()).items())"
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=True, timeout=120)


def test_facts_are_read_without_knowing_the_parts(file, tmp_path):
    assert composition_facts(file) == {"names": ["a", "b"]}
    save_composition(tmp_path / "plain.safetensors", parts(), BASE)
    assert composition_facts(tmp_path / "plain.safetensors") == {}
    storage.save_safetensors(tmp_path / "w.safetensors", {"a": np.ones(2, np.float32)})
    file.write_bytes(file.read_bytes()[:-1])
    for path, words in (
        (tmp_path / "w.safetensors", "is no composition .it says None."),
        (tmp_path / "gone.safetensors", "gone"),
        (file, "all.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=words):
            composition_facts(path)


def test_whatever_does_not_fit_is_named(file, tmp_path):
    def refused(words, like=None, base=BASE, path=file):
        with pytest.raises(CheckpointError, match=words):
            load_composition(path, parts() if like is None else like, base)

    more = parts()
    more["fusion"]["layer1"] = {"value": np.ones((3, 3), np.float32)}
    refused("lacks the leaf 'fusion/layer1/value' .did you mean 'fusion/layer0/value'", more)
    less = {name: part for name, part in parts().items() if name != "head"}
    refused("has a leaf 'head/kernel', which nothing here reads", less)
    wide = parts() | {"head": {"kernel": np.ones((3, 5), np.float16)}}
    refused(r"'head/kernel' of .* is float16 \(3, 2\), expected float16 \(3, 5\)", wide)
    long = parts() | {"head": {"kernel": np.ones((3, 2), np.float32)}}
    refused(r"is float16 \(3, 2\), expected float32 \(3, 2\)", long)
    other = {"encoder": {"kernel": BASE["encoder"]["kernel"] + 1}}
    refused("was trained beside the base sha256:.*, and this one is sha256:", base=other)
    storage.save_safetensors(tmp_path / "w.safetensors", {"a": np.ones(2, np.float32)})
    refused("is no composition .it says None.", path=tmp_path / "w.safetensors")
    refused("nothing", path=tmp_path / "gone.safetensors")
    damaged = parts()
    damaged["head"]["kernel"][1, 0] = np.nan
    save_composition(tmp_path / "nan.safetensors", damaged, BASE)
    refused("'head/kernel' of .* holds NaN or infinity", path=tmp_path / "nan.safetensors")
    leaves, metadata = storage.load_safetensors(file)
    for said in ("{", "[]"):
        path = tmp_path / "facts.safetensors"
        storage.save_safetensors(path, leaves, metadata | {"facts": said})
        refused("says of its parts .*, expected a JSON object", path=path)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    file = tmp_path / "a.safetensors"
    for given, facts, words in (
        ({"head": {}}, {}, "the part 'head' of a composition has 0 leaves"),
        ({"a/b": {"x": np.ones(1)}}, {}, "the part 'a/b' .* a name without '/'"),
        ({"head": {"x": np.ones(1)}}, {"loss": np.nan}, "have no form in JSON"),
        ({"head": {"x": np.ones(1)}}, {"f": object()}, "have no form in JSON"),
    ):
        with pytest.raises(CheckpointError, match=words):
            save_composition(file, given, BASE, facts)
    assert not list(tmp_path.iterdir())
