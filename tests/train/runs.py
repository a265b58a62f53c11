"""Work directories as a run leaves them, without training."""

from __future__ import annotations

import jax
import numpy as np

from sinewich_jax import parallel
from sinewich_jax.config import Config
from sinewich_jax.train import checkpointing, setup, workdir

CONFIG = Config(
    data="no such data",
    tasks=("semseg", "depth"),
    image_size=(32, 32),
    rank=2,
    output_bias="zero",
    decoder_channels=(4, 4, 4, 4),
    decoder_hidden=8,
)


def perturbed(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(leaf.dtype), tree
    )


def save_run(folder, config: Config, experiment=None):
    """A work directory as a run of seven steps leaves it, with noise for training."""
    made = setup.set_up(config, parallel.make_mesh(devices=jax.devices()[:1]), experiment)
    state = made.placed.state._replace(params=perturbed(made.placed.state.params))
    workdir.prepare(folder, config)
    workdir.claim(folder, config)
    base = checkpointing.save_base(folder, made.placed.constants)
    with checkpointing.open_store(folder, config) as store:
        meta = checkpointing.describe(config, made.counts, base, {})
        checkpointing.save(store, 7, state, meta)
        store.wait()
    return made, state
