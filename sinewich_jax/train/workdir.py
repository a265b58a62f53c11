"""The work directory: which experiment it belongs to, and whether that is done."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from sinewich_jax import config as configs
from sinewich_jax import parallel, storage
from sinewich_jax.config import Config
from sinewich_jax.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
CHECKPOINTS = storage.leaves.CHECKPOINTS
BASE = storage.leaves.BASE
PANELS = "panels"
DIAGNOSTICS = "diagnostics"


def prepare(workdir: Path, config: Config) -> None:
    """Makes the directory, or checks that what is in it belongs to ``config``.

    Args:
      workdir: the directory.
      config: the run.  Keys that only say how it is executed may differ from the recorded ones.

    Raises:
      ConfigError: the directory holds another experiment (the message lists the keys that differ)
        or one that it does not name, the path is a file, or the directory cannot be made or
        written to.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"the work directory {workdir} is a file; choose another --workdir")
    if not (workdir / CONFIG_FILE).exists():
        for left in (CHECKPOINTS, RESULTS_FILE):
            if (workdir / left).exists():
                raise ConfigError(
                    f"the work directory {workdir} holds {left} but no {CONFIG_FILE} that says "
                    "which run it belongs to; choose another --workdir"
                )
    else:
        changed = configs.differences(read_config(workdir), config)
        if changed:
            listed = ", ".join(
                f"{key} (there {old!r}, now {new!r})" for key, (old, new) in changed.items()
            )
            raise ConfigError(
                f"the work directory {workdir} holds a run of another config: {listed}; choose "
                "another --workdir, or give it the same values to go on"
            )
    if parallel.is_main_process():
        make(workdir)


def as_begun(workdir: Path, config: Config) -> Config:
    """``config`` with what was fixed when the run in ``workdir`` began.

    Whether curvature is kept shapes the optimizer's state, not the weights: a run that began with
    it, or in an earlier version without it, goes on so.
    """
    if not (workdir / CONFIG_FILE).exists():
        return config
    return dataclasses.replace(config, merge_stats_every=read_config(workdir).merge_stats_every)


def make(workdir: Path) -> None:
    """Makes the directory where it is missing.

    Raises:
      ConfigError: it cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the work directory {workdir} cannot be made ({error.strerror}); choose another "
            "--workdir"
        ) from error
    if not os.access(workdir, os.W_OK):
        raise ConfigError(
            f"the work directory {workdir} cannot be written to; choose another --workdir"
        )


def claim(workdir: Path, config: Config) -> None:
    """Writes ``config.json``: from now on the directory belongs to ``config``.

    To be called when data and model are known to be usable, so that a run which failed before its
    first step can be mended and started in the same directory.
    """
    if parallel.is_main_process():
        storage.write_json(workdir / CONFIG_FILE, configs.to_dict(config))


def read_config(workdir: Path) -> Config:
    """The config of the run in ``workdir``.

    Raises:
      CheckpointError: there is none, or it is no JSON.
      ConfigError: it has keys or values that this version does not know.
    """
    path = workdir / CONFIG_FILE
    content = read_json(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected the keys of a config")
    content.setdefault("merge_stats_every", 0)  # earlier versions kept no curvature
    try:
        return configs.from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{path}, perhaps of another version, cannot be used: {error}") from error


def read_results(workdir: Path) -> dict[str, Any]:
    """What the run in ``workdir`` reached (``results.json``).

    Raises:
      CheckpointError: the run has not finished, or the file does not hold the results of one.
    """
    path = workdir / RESULTS_FILE
    content = read_json(path)
    if not isinstance(content, dict) or not {"tasks", "steps"} <= content.keys():
        raise CheckpointError(
            f"{path} holds no results of tasks, expected those of a training run; name another "
            "directory"
        )
    return content


def is_finished(workdir: Path, config: Config) -> bool:
    """Whether ``workdir`` has the results of all the steps of ``config``."""
    return (workdir / RESULTS_FILE).exists() and read_results(workdir)["steps"] == config.steps


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run.

    Raises:
      CheckpointError: the file is not there, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; expected the work directory of a training run"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no valid JSON ({error}); restore it, or start in another work directory"
        ) from error
