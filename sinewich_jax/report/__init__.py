"""What a person reads: result pages, pictures of predictions, curves, tables of studies.

    report.write_results(workdir, results)              # results.md, curves.png
    report.write_panels(workdir / "panels", tasks, examples)
    report.compare_methods({"sinewich": {"depth": [0.31, 0.30]}}, "methods.png")

Pictures are drawn with Pillow alone: the same bytes from the same numbers, no fonts to install.
Names are looked up on first use.
"""

from __future__ import annotations

import importlib

_MODULES = ("compare", "curves", "panels", "results", "study")
_HOMES = {
    "command_block": "tables",
    "compare_methods": "compare",
    "markdown_table": "tables",
    "mean_spread": "tables",
    "result_page": "results",
    "write_curves": "curves",
    "write_overview": "overview",
    "write_page": "study",
    "write_panels": "panels",
    "write_results": "results",
}

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
