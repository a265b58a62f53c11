"""Leaves that only a task has."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.errors import SinewichError
from sinewich_jax.switches import DenseLeaf, SwitchBank, apply_switch, make_switch, split_own

BASE = {"trunk": {"kernel": np.ones((8, 4), np.float32)}}
CHANGE = make_switch({"trunk": {"kernel": np.arange(32, dtype=np.float32).reshape(8, 4)}})
HEAD = np.full((4, 3), 2, np.float32)


def test_a_head_goes_through_a_bank_and_out_beside_the_changes(tmp_path):
    with_head = CHANGE._replace(leaves=CHANGE.leaves | {"head/kernel": DenseLeaf(HEAD)})
    with SwitchBank.create(tmp_path / "a.swb", base=BASE) as bank:
        bank.add("cars", with_head)
        found = bank.get("cars")
    with pytest.raises(SinewichError, match="'head/kernel', which the base has not"):
        apply_switch(BASE, found)
    switch, own = split_own(found, BASE)
    on, expected = apply_switch(BASE, switch), apply_switch(BASE, CHANGE)
    np.testing.assert_array_equal(on["trunk"]["kernel"], expected["trunk"]["kernel"])
    assert list(own) == ["head/kernel"]
    np.testing.assert_array_equal(own["head/kernel"], HEAD)


def test_a_packed_leaf_that_the_base_has_not_is_of_another_base():
    with pytest.raises(SinewichError, match="'trunk/kernel', which the base does not have"):
        split_own(CHANGE, {"body": HEAD})
