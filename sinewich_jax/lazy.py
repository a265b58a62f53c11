"""Names that are looked up on first use, so that importing a room imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(
    package: str, modules: Iterable[str], homes: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package assigns to its ``__getattr__``, ``__dir__`` and ``__all__``.

    Args:
      package: the ``__name__`` of the package.
      modules: submodules that it offers.
      homes: objects that it offers, each with the submodule it lives in.

    Returns:
      The three, in that order.

    Examples:
      >>> __getattr__, __dir__, __all__ = attach(__name__, ("mesh",), {"make_mesh": "mesh"})
    """
    modules, homes = frozenset(modules), dict(homes or {})
    names = sorted({*modules, *homes})

    def look_up(name: str) -> Any:
        # An object wins over a submodule of the same name, as an ordinary import would.
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return look_up, lambda: list(names), names
