"""Cases of one test in two tiers: some run always, all of them in the slow tier's run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def cases(every: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """``every`` case for ``pytest.mark.parametrize``; those not in ``fast`` are marked slow."""
    every = tuple(every)
    missing = [case for case in fast if case not in every]
    assert not missing, f"{missing} are no cases"
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in every]
