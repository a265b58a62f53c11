"""One process of a small pod; run by test_multiprocess.py.

Arguments: address, number of processes, number of this process, output file, and optionally a
checkpoint directory.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sinewich_jax.parallel import (
    abstract_with_shardings,
    is_main_process,
    local_slice,
    make_mesh,
    put_batch,
    sharding_tree,
    state_shardings,
)

RULES = [("w1", P(None, "model")), ("w2", P("model", None)), (".*", P())]
TX = optax.adam(0.05)
ROWS = 8


def global_batch(step: int) -> dict[str, np.ndarray]:
    """Every row is different, so that feeding the wrong rows changes the loss."""
    rng = np.random.default_rng(step)
    return {
        "x": rng.standard_normal((ROWS, 6)).astype(np.float32),
        "y": rng.standard_normal((ROWS, 2)).astype(np.float32),
        "index": np.arange(ROWS, dtype=np.int32) + step * ROWS,
    }


def initial() -> dict[str, jax.Array]:
    """The same parameters everywhere."""
    rng = np.random.default_rng(0)
    return {
        "w1": jnp.asarray(rng.standard_normal((6, 4)), jnp.float32),
        "w2": jnp.asarray(rng.standard_normal((4, 2)), jnp.float32),
        "b": jnp.zeros(2),
    }


class Run:
    """A tiny training run on a mesh: parameters and optimizer state with explicit shardings."""

    def __init__(self, mesh):
        self.mesh = mesh
        abstract = jax.eval_shape(initial)
        shardings = sharding_tree(abstract, mesh, RULES)
        params = abstract_with_shardings(abstract, shardings)
        state = jax.eval_shape(TX.init, abstract)
        states = state_shardings(state, params, mesh)
        self.target = {"params": params, "opt_state": abstract_with_shardings(state, states)}
        placed = jax.jit(initial, out_shardings=shardings)()
        opt_state = jax.jit(TX.init, out_shardings=states)(placed)
        self.items = {"params": placed, "opt_state": opt_state}
        whole = NamedSharding(mesh, P())
        self.update = jax.jit(
            update, out_shardings=({"params": shardings, "opt_state": states}, (whole, whole))
        )

    def train(self, first: int, last: int) -> list[float]:
        """Takes the steps first, ..., last - 1 and returns their losses."""
        losses = []
        for step in range(first, last):
            rows = local_slice(self.mesh, ROWS)
            local = {name: leaf[rows] for name, leaf in global_batch(step).items()}
            batch = put_batch(local, self.mesh)
            self.items, (loss, seen) = self.update(self.items, batch)
            assert int(seen) == global_batch(step)["index"].sum()
            losses.append(float(loss))
        return losses


def update(items, batch):
    """One Adam step; also the sum over the sample indices that the devices saw."""

    def loss(params):
        hidden = jnp.tanh(batch["x"] @ params["w1"])
        return jnp.mean((hidden @ params["w2"] + params["b"] - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(items["params"])
    updates, opt_state = TX.update(grads, items["opt_state"], items["params"])
    params = optax.apply_updates(items["params"], updates)
    return {"params": params, "opt_state": opt_state}, (value, batch["index"].sum())


def psum_of_rows(mesh) -> list[float]:
    """The sum over the ``data`` axis by hand, inside ``shard_map``."""
    rows = local_slice(mesh, ROWS)
    x = put_batch({"x": global_batch(0)["x"][rows]}, mesh)["x"]
    total = jax.shard_map(
        lambda part: jax.lax.psum(part.sum(axis=0), "data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
    )
    return np.asarray(jax.jit(total)(x)).tolist()


def save_fall_back_go_on(run: Run, directory: pathlib.Path) -> dict[str, Any]:
    """Saves two steps, damages the second, restores the first and trains on from there."""
    from sinewich_jax.storage import CheckpointStore
    from sinewich_jax.storage.agree import from_main_process

    with CheckpointStore(directory) as store:
        losses = run.train(0, 3)
        store.save(3, {**run.items, "meta": {"step": 3}})
        losses += run.train(3, 6)
        store.save(6, {**run.items, "meta": {"step": 6}})
        store.wait()
        if is_main_process():
            (directory / "6" / "params" / "manifest.ocdbt").write_bytes(b"damaged")
        from_main_process("the file is damaged now")
        restored = store.restore_latest(run.target)
        run.items = restored.items
        again = run.train(3, 6)
        store.save(6, {**run.items, "meta": {"step": 6}})
    found = [restored.step, restored.meta, restored.skipped]
    return {"losses": losses, "restored": found, "again": again}


def main() -> None:
    """Trains on this process's devices and writes down what it saw."""
    address, processes, this, output, *directory = sys.argv[1:]
    jax.distributed.initialize(address, int(processes), int(this))
    mesh = make_mesh(data=2, model=2)
    rows = local_slice(mesh, ROWS)
    result = {"rows": [rows.start, rows.stop], "psum": psum_of_rows(mesh)}
    result["main"] = is_main_process()
    run = Run(mesh)
    if directory:
        result |= save_fall_back_go_on(run, pathlib.Path(directory[0]))
    else:
        result["losses"] = run.train(0, 6)
    pathlib.Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
