"""From a config to an experiment: the one place that knows every kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sinewich_jax import data
from sinewich_jax.config import Config
from sinewich_jax.core.weighting import make as make_weighting
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn.sinewich import MultiTaskModel, path_rules
from sinewich_jax.train import networks, texts
from sinewich_jax.train.experiment import (
    FULL,
    OWN_RULES,
    Experiment,
    make_task,
    open_source,
    own_rows,
)

__all__ = ["Experiment", "experiment", "for_shapes", "new_task_rules", "open_source", "own_rows"]


def experiment(
    config: Config,
    train_source: data.DataSource | None = None,
    eval_source: data.DataSource | None = None,
    begun: Path | None = None,
) -> Experiment:
    """Builds what ``config`` names; neither data nor weights are read yet.

    Args:
      config: the run.
      train_source: training examples in place of the data set that ``config`` names.
      eval_source: evaluation examples in place of its.
      begun: the work directory of the run, which may have begun and recorded what it began with.

    Raises:
      ConfigError: words or sizes that do not fit together, an unknown weighting or option of it.
    """
    if texts.is_text(config):
        return texts.experiment(config, train_source, eval_source, begun)
    if config.method == "single_task" and len(config.tasks) > 1:
        raise ConfigError(
            f"method 'single_task' trains one network a task, found {len(config.tasks)} tasks in "
            "one run; train with train.py, which makes a run of each, or name one task"
        )
    made = tuple(make_task(config, name) for name in config.tasks)
    groups = ("all",) if config.method in FULL else config.trainable
    given = {"train": train_source, "eval": eval_source}
    sources = {part: source for part, source in given.items() if source is not None}
    weighting = make_weighting(config.weighting, len(made), **dict(config.weighting_options))
    network = networks.model(config, made)
    rules = path_rules(groups) if config.add_task is None else new_task_rules(network)
    return Experiment(config, network, made, rules, weighting, sources=sources)


def for_shapes(config: Config) -> Config:
    """The config of the same network that needs no file of weights.

    Of a text encoder it is the same config, whose weights are not read before a run begins.
    """
    is_text = texts.is_text(config)
    return config if is_text else dataclasses.replace(config, backbone_weights="random")


def new_task_rules(network: MultiTaskModel) -> tuple[tuple[str, str], ...]:
    """Rules under which only what one task owns is trained."""
    own = (*own_rows(network), *OWN_RULES)
    return (*((pattern, "trainable") for pattern in own), (r".*", "frozen"))
