"""What Delta m compares with: finished single-task runs, or published tables by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sinewich_jax import tasks
from sinewich_jax.config import Config
from sinewich_jax.errors import CheckpointError
from sinewich_jax.train import workdir as workdirs


def read_references(
    directories: Iterable[str | Path], config: Config | None = None
) -> dict[str, float]:
    """The primary metrics of other runs, by task; later directories win.

    Args:
      directories: work directories of finished single-task runs, directories that hold some, or
        names of published tables (``tasks.REFERENCES``).
      config: the run that is compared with them; None does not look at their data.

    Raises:
      CheckpointError: a directory without results, with a value that Delta m cannot divide by, or
        one that was scored on other examples.
    """
    references: dict[str, float] = {}
    for directory in itertools.chain.from_iterable(map(_runs_in, directories)):
        if str(directory) in tasks.REFERENCES and not Path(directory).exists():
            references |= _published(str(directory), config)
            continue
        results = workdirs.read_results(Path(directory))
        for name, row in results["tasks"].items():
            if not row["value"] or row["value"] < 0:
                raise CheckpointError(
                    f"the reference {directory} reached a {name} {row['metric']} of "
                    f"{row['value']}, expected a positive number; train it longer or leave it out"
                )
            references[name] = row["value"]
        if config is not None:
            _check_comparable(Path(directory), results, config)
    return references


def _runs_in(directory: str | Path) -> list[str | Path]:
    """The directory itself, or the finished runs that it holds if it is none."""
    path = Path(directory)
    if (path / workdirs.RESULTS_FILE).exists():
        return [directory]
    inner = sorted(file.parent for file in path.glob(f"*/{workdirs.RESULTS_FILE}"))
    return inner or [directory]


def scored_on(config: Config) -> dict[str, Any]:
    """What two runs must share for their scores to compare, as ``results.json`` records it."""
    size = None if config.image_size is None else list(config.image_size)
    keys = ("data", "eval_split", "eval_size", "eval_resolution")
    return {**{key: getattr(config, key) for key in keys}, "image_size": size}


def _published(name: str, config: Config | None) -> dict[str, float]:
    table = tasks.reference_table(name)
    if config is not None:
        _check_equal(f"the published reference {name!r}", table.scored_on, config)
    return dict(table.values)


def _check_comparable(directory: Path, results: Mapping[str, Any], config: Config) -> None:
    """Delta m compares runs that were scored on the same examples in the same way.

    The results say how, because a run may be scored otherwise than its config says.
    """
    there = results.get("scored_on") or scored_on(workdirs.read_config(directory))
    _check_equal(f"the reference {directory}", there, config)


def _check_equal(what: str, there: Mapping[str, Any], config: Config) -> None:
    here = scored_on(config)
    for key, value in there.items():
        if value != here[key]:
            raise CheckpointError(
                f"{what} was scored with {key}={value!r}, this run has {here[key]!r}; "
                "Delta m needs references on the same examples"
            )
