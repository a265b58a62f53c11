"""Work directories as a run leaves them, without training."""

from __future__ import annotations

import dataclasses
import importlib

import jax
import numpy as np

from sinewich_jax import parallel
from sinewich_jax.config import Config, from_config_dict
from sinewich_jax.train import checkpointing, merge_item, setup, workdir
from sinewich_jax.train import state as states

CONFIG = Config(
    data="no such data",
    tasks=("semseg", "depth"),
    image_size=(32, 32),
    rank=2,
    output_bias="zero",
    decoder_channels=(4, 4, 4, 4),
    decoder_hidden=8,
)


def text_config(words: str) -> Config:
    """A tiny run on generated texts; ``words`` are those of configs/glue_adapters.py."""
    config = importlib.import_module("configs.glue_adapters").get_config(f"debug,{words}")
    return dataclasses.replace(from_config_dict(config), output_bias="zero")


def perturbed(tree, noise=0):
    rng = np.random.default_rng(noise)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(leaf.dtype), tree
    )


def save_run(folder, config: Config, experiment=None, noise=0):
    """A work directory as a run of seven steps leaves it, with noise for training."""
    made = setup.set_up(config, parallel.make_mesh(devices=jax.devices()[:1]), experiment)
    state = made.placed.state._replace(params=perturbed(made.placed.state.params, noise))
    workdir.prepare(folder, config)
    workdir.claim(folder, config)
    base = checkpointing.save_base(folder, made.placed.constants)
    with checkpointing.open_store(folder, config) as store:
        meta = checkpointing.describe(config, made.counts, base, {})
        start = merge_item.save_start(
            folder / workdir.BASE, made.placed.state.params, made.per_task
        )
        variables = states.join_variables(state.params, state.model_state, made.placed.constants)
        model = made.experiment.model
        omega = model.apply(variables, method="frequencies") if experiment is None else {}
        meta["merge"] = merge_item.describe(
            config, made.merge_base, start, omega, made.per_task, made.shared
        )
        checkpointing.save(store, 7, state, meta)
        store.wait()
    return made, state
