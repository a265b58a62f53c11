"""Where a result may be written: never over what it is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinewich_jax.errors import ConfigError
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.switches.swb.log import MAGIC

StrPath = str | os.PathLike[str]

_INDEX = ".safetensors.index.json"


def inputs_of(
    base: StrPath, experts: Mapping[str, StrPath], stats: Mapping[str, StrPath] | None = None
) -> dict[str, Path]:
    """What packing reads, by what messages call it."""
    found = {"the base": Path(base)}
    found |= {f"the expert {name!r}": Path(path) for name, path in experts.items()}
    found |= {f"the statistics of {name!r}": Path(path) for name, path in (stats or {}).items()}
    return found


def check_apart(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuses a file that is an input, by whatever name, or lies in the folder of one.

    Args:
      out: the file that is to be written.
      inputs: what each is -> a file, the index of shards, a folder, a run, or ``WORKDIR@TASK``.

    Raises:
      ConfigError: naming the input.
    """
    place = Path(os.path.realpath(out))
    for what, path in inputs.items():
        given = _there(path)
        folder = given.parent if given.name.endswith(_INDEX) else given
        files = [given]
        if folder.is_dir():
            if place.is_relative_to(os.path.realpath(folder)):
                raise ConfigError(f"{out} lies in {folder}, which is {what}; choose another --out")
            files = list(folder.iterdir())  # links to files elsewhere
        if out.exists() and any(file.exists() and out.samefile(file) for file in files):
            raise ConfigError(f"{out} would replace {what} ({given}); choose another --out")


def check_new(out: Path, inputs: Mapping[str, Path], overwrite: bool) -> None:
    """Refuses a folder, an input, and a file that is there.

    Args:
      out: the file that is to be written.
      inputs: see :func:`check_apart`.
      overwrite: whether another file may be replaced.

    Raises:
      ConfigError: naming it.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder, expected a file; name another --out")
    check_apart(out, inputs)
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out, or pass --overwrite")


def check_target(
    out: Path, names: list[str], inputs: Mapping[str, Path], append: bool, overwrite: bool
) -> dict[str, dict[str, Any]]:
    """What is known of the tasks that stay in the bank, ``{}`` for a new one.

    Args:
      out: the bank.
      names: of the tasks that are to be in it.
      inputs: what they are made of, which a new bank must not replace.
      append: whether they are added to the bank that is there.
      overwrite: whether a bank, or with ``append`` a task, may be replaced.

    Raises:
      ConfigError: a bank that is there, or is not there, or has a task of that name; an input, or
        a file of another kind.
      SwitchBankError: the file is damaged, or no bank.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder, expected a file; name another --out")
    if not append:
        check_apart(out, inputs)
        if out.exists() and not overwrite:
            raise ConfigError(
                f"{out} exists already; add tasks to it with --append, write it anew with "
                "--overwrite, or choose another --out"
            )
        if out.exists() and not _is_bank_or_empty(out):
            raise ConfigError(
                f"{out} is no switch bank, and --overwrite replaces nothing else; choose another "
                "--out"
            )
        return {}
    if not out.exists():
        raise ConfigError(f"there is no bank {out} to append to; leave out --append for a new one")
    with SwitchBank.open(out) as bank:
        known = {name: dict(bank.meta(name)) for name in bank.names}
    for name in names:
        if name in known and not overwrite:
            raise ConfigError(
                f"the bank {out} has a task {name!r} already; give the expert another name, or "
                "replace it with --overwrite"
            )
    return known


def _there(path: Path) -> Path:
    """The run of ``WORKDIR@TASK``; a path that is there is no such thing."""
    workdir, at, _ = os.fspath(path).rpartition("@")
    return Path(workdir) if at and not path.exists() else path


def _is_bank_or_empty(path: Path) -> bool:
    """Whether nothing else than a bank is lost with a file; a damaged one is one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) in (b"", MAGIC)
