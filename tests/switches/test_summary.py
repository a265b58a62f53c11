"""The summary of a switch: counts, bits, and fidelity against what NumPy says densely."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core.ternary import entropy_bits
from sinewich_jax.errors import SinewichError
from sinewich_jax.switches.apply import stack_switches, unpack
from sinewich_jax.switches.leaf import LeafSwitch, Switch
from sinewich_jax.switches.make import make_switch
from sinewich_jax.switches.summary import summarize

RNG = np.random.default_rng(0)
DELTA = {
    "body": {"kernel": RNG.laplace(size=(40, 10)).astype(np.float32)},
    "bias": RNG.laplace(size=13).astype(np.float32),
    "gain": np.float32(0.5),
    "idle": np.zeros(9, np.float32),
}


def cosine(x, y):
    return float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_rows_say_what_is_there(library):
    switch = make_switch(DELTA, alpha=0.6, group="row")
    if library == "jax":
        switch = jax.tree.map(jnp.asarray, switch)
    found = summarize(switch, DELTA)
    rows = {row.path: row for row in found.rows}
    assert list(rows) == ["bias", "body/kernel", "gain", "idle"]
    kernel, vector = rows["body/kernel"], unpack(switch)["body"]["kernel"]
    assert (kernel.kind, kernel.n, kernel.active) == ("switch", 400, np.count_nonzero(vector))
    assert kernel.density == kernel.active / 400
    assert kernel.plane_bits == 2 * 400 + 32 * 10
    assert kernel.entropy_bits == entropy_bits(400, kernel.active) + 32 * 10
    assert kernel.knob == pytest.approx(np.mean(switch.leaves["body/kernel"].knob))
    assert kernel.cosine == pytest.approx(cosine(DELTA["body"]["kernel"], vector), rel=1e-6)
    rest = np.linalg.norm(DELTA["body"]["kernel"] - vector)
    assert kernel.rel_err == pytest.approx(rest / np.linalg.norm(DELTA["body"]["kernel"]), rel=1e-6)
    gain, idle = rows["gain"], rows["idle"]
    assert (gain.kind, gain.n, gain.plane_bits, gain.rel_err) == ("dense", 1, 32, 0)
    assert gain.cosine == pytest.approx(1)
    assert (idle.active, idle.knob, idle.cosine, idle.rel_err) == (0, 0, 1, 0)


def test_the_total_is_one_vector():
    switch = make_switch(DELTA, alpha="auto", knob="l1")
    found = summarize(switch, DELTA)
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)])
            for x in (DELTA, unpack(switch))]  # fmt: skip
    assert found.total.n == 400 + 13 + 1 + 9
    assert found.total.active == np.count_nonzero(flat[1])
    assert found.total.entropy_bits == pytest.approx(sum(row.entropy_bits for row in found.rows))
    assert found.total.cosine == pytest.approx(cosine(*flat), rel=1e-6)
    rest = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0])
    assert found.total.rel_err == pytest.approx(rest, rel=1e-6)
    # With the knobs of least squares the error is what the cosine leaves.
    kernel = next(row for row in found.rows if row.path == "body/kernel")
    assert kernel.rel_err**2 + kernel.cosine**2 == pytest.approx(1, rel=1e-5)


def test_levels_count_as_bits():
    planes = np.full((2, 1), 0b1011, np.uint8)
    leaf = LeafSwitch(planes[0], planes[0], np.float32(2), planes, (4,))
    delta = {"w": np.float32([6, 6, 0, 6])}
    (row,) = summarize(Switch({"w": leaf}), delta).rows
    assert row.plane_bits == 8 * 4 + 32
    assert row.entropy_bits == entropy_bits(4, 3, bits=3) + 32
    assert row.cosine == pytest.approx(1) and row.rel_err == 0


def test_the_table_is_aligned():
    switch = make_switch(DELTA)
    lines = summarize(switch).table().splitlines()
    assert lines[0].split() == [
        "leaf",
        "kind",
        "entries",
        "density",
        "knob",
        "bits/entry",
        "planes",
    ]
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].startswith("total")
    assert summarize(switch, DELTA).table().splitlines()[0].endswith("error")
    assert summarize(Switch({})).total.n == 0 and summarize(Switch({}), {}).table()


def test_another_task_vector_is_refused():
    switch = make_switch(DELTA)
    with pytest.raises(SinewichError, match="the switch has the leaf 'bias', which the task vec"):
        summarize(switch, {"body": DELTA["body"]})
    with pytest.raises(SinewichError, match=r"'bias' of shape \(13,\), but its shape .* is \(2,\)"):
        summarize(switch, {**DELTA, "bias": np.zeros(2, np.float32)})
    with pytest.raises(SinewichError, match="the task vector has the leaf 'more', which the sw"):
        summarize(switch, {**DELTA, "more": np.ones(2)})
    with pytest.raises(SinewichError, match="merge stacked switches"):
        summarize(stack_switches([switch, switch]))
