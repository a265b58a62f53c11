"""The single-task baseline: one fully fine-tuned network a task, one run after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sinewich_jax.config import PER_TASK_KEYS, Config
from sinewich_jax.train import loop


def task_configs(config: Config) -> dict[str, Config]:
    """The config of every task's own run.

    Args:
      config: a run with ``method="single_task"`` and any number of tasks.

    Returns:
      By task, ``config`` with that task alone.
    """
    return {
        task: dataclasses.replace(
            config,
            tasks=(task,),
            **{
                key: tuple(pair for pair in getattr(config, key) if pair[0] == task)
                for key in PER_TASK_KEYS
            },
        )
        for task in config.tasks
    }


def train(
    config: Config, workdir: str | Path, references: Sequence[str | Path] = ()
) -> loop.Outcome:
    """Trains a network for each task, in ``workdir/<task>``; goes on where it was stopped.

    A single task is an ordinary run, in ``workdir`` itself.

    ``--reference WORKDIR`` then gives the scores of all these runs to another.

    Args:
      config: a run with ``method="single_task"``.
      workdir: where the runs leave their directories.
      references: of other single-task runs, for Delta m.

    Returns:
      How the last run that was started ended.

    Raises:
      SinewichError: what :func:`sinewich_jax.train.loop.train` raises.
    """
    for task, own in task_configs(config).items():
        folder = Path(workdir) / task if len(config.tasks) > 1 else workdir
        outcome = loop.train(own, folder, references=references)
        if outcome.status == "stopped":
            break
    return outcome
