"""The error family: every message is one sentence that a user can act on.

All of them are ``ValueError`` so that library users can catch what they already know, and commands
turn any of them into one line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SinewichError(ValueError):
    """Base of every error that this library raises on purpose."""


class ConfigError(SinewichError):
    """A configuration key or value that cannot be used."""


class DataError(SinewichError):
    """An image, a label or a data set that is not what the tasks need."""


class CheckpointError(SinewichError):
    """A checkpoint, weight file or work directory that cannot be used."""


class TrainingError(SinewichError):
    """Training reached a state from which going on makes no sense (a NaN loss, for example)."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The nearest of ``options`` as a ready-made hint.

    Args:
      name: what the user wrote.
      options: what would have been accepted.

    Returns:
      ``" (did you mean 'x'?)"``, or the list of all options when none is near.

    Examples:
      >>> did_you_mean("rnak", ["rank", "scale"])
      " (did you mean 'rank'?)"
    """
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(options)})" if options else ""
