"""The pickle reader understands state dicts, and runs nothing: neither names nor instructions."""

from __future__ import annotations

import collections
import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinewich_jax.convert.torch_pickle import Storage, Tensor, parse
from sinewich_jax.errors import CheckpointError
from tests.convert import foreign


def read(body: bytes):
    return parse(b"\x80\x02" + body + b".", "w.pth")


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_values_are_those_of_pickle(protocol):
    value = {
        "a": [1, -5, 2**40, 0.5, True, None],
        "b": (1, (2,), (3, 4), (5, 6, 7), (1, 2, 3, 4)),
        7: {"deep": {}},
        "again": [[], [1]],
    }
    value["twice"] = value["a"]
    value["ordered"] = collections.OrderedDict([("x", 1), ("y", 2)])
    assert parse(pickle.dumps(value, protocol), "w.pth") == value


def test_a_tensor_is_a_record():
    made = read(foreign.tensor("7", "Float", 12, (2, 3), (1, 4), offset=2))
    assert made == Tensor(
        Storage(np.dtype("<f4"), "7", 12), np.dtype("<f4"), offset=2, shape=(2, 3), strides=(1, 4)
    )


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("how", ["system", "eval"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, protocol, how):
    marker = tmp_path / "ran"
    call = Evil(os.system, f"touch {marker}")
    if how == "eval":
        call = Evil(eval, f"open({str(marker)!r}, 'w').close()")
    data = pickle.dumps({"model": {"weight": call}}, protocol)
    with pytest.raises(CheckpointError, match=r"w\.pth asks for .*could run code") as refusal:
        parse(data, "w.pth")
    assert not marker.exists()
    if protocol >= 2:  # the older ones write strings in a way that no state dict has
        assert re.search(r"'posix\.system'|'(__builtin__|builtins)\.eval'", str(refusal.value))
    pickle.loads(pickle.dumps(call, protocol))
    assert marker.exists(), "the same pickle does run where pickle itself loads it"


@pytest.mark.parametrize(
    "body",
    [
        foreign.name_of("os", "system") + foreign.text("true") + b"\x85R",
        foreign.name_of("torch", "load") + foreign.text("x") + b"\x85R",
        foreign.name_of("torch._utils", "_rebuild_tensor_v2.__globals__") + b")R",
        foreign.name_of("collections", "OrderedDict.fromkeys") + b")R",
        b"(ios\nsystem\n",
        foreign.name_of("collections", "OrderedDict") + b")\x81",
        b"\x8c\x02os\x8c\x06system\x93",
        b"cyacs.config\nCfgNode\n)R",
        b"\x82\x01",
        b"Ploaded by name\n",
    ],
)
def test_every_other_name_or_instruction_is_refused(body):
    with pytest.raises(CheckpointError, match="could run code"):
        read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"NN",
        b"u",
        b"t",
        b"]N]s",
        b"h\x07",
        b"}(N",
        b"}]Ns",
        b"\xff",
        b"X\xff\xff\xff\x7fshort",
        b"r\xff\xff\xff\x7f",
        foreign.name_of("torch", "FloatStorage") + b")R",
        foreign.name_of("torch", "float32") + b")R",
        foreign.name_of("torch._utils", "_rebuild_tensor_v2") + b")R",
        foreign.name_of("torch._utils", "_rebuild_parameter") + b"N\x85R",
        foreign.tensor("0", "Float", -1, (1,), (1,)),
        foreign.tensor("0", "Float", 1, (1,), (1,), offset=-1),
        foreign.tensor("0", "Float", 1, (1, 1), (1,)),
        b"(" + foreign.text("module") + b"tQ",
    ],
)
def test_nonsense_is_called_damaged(body):
    with pytest.raises(CheckpointError, match=r"w\.pth is damaged: its pickle makes no sense"):
        read(body)
    with pytest.raises(CheckpointError, match="is damaged"):
        parse(b"\x80\x02" + body, "w.pth")


@settings(max_examples=300)
@given(st.data())
def test_any_damage_ends_in_one_sentence(data):
    """Bytes of a whole pickle replaced and cut: a value or our error, nothing else."""
    whole = bytearray(
        b"\x80\x02" + foreign.mapping({"a": foreign.tensor("0", "Float", 6, (2, 3), (3, 1))}) + b"."
    )
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        parse(bytes(whole[:cut]), "w.pth")
    except CheckpointError as error:
        assert str(error).startswith("w.pth ")
