"""What a person reads: result pages, pictures of predictions, curves, tables of studies.

    report.write_results(workdir, results)              # results.md, curves.png
    report.write_panels(workdir / "panels", tasks, examples)
    report.compare_methods({"sinewich": {"depth": [0.31, 0.30]}}, "methods.png")

Pictures are drawn with Pillow alone: the same bytes from the same numbers, no fonts to install.
Names are looked up on first use.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("compare", "curves", "panels", "results", "study")
_HOMES = {
    "command_block": "tables",
    "compare_methods": "compare",
    "markdown_table": "tables",
    "mean_spread": "tables",
    "result_page": "results",
    "write_answers": "answers",
    "write_attention": "attention",
    "write_curves": "curves",
    "write_diagnostics": "diagnostics",
    "write_overview": "overview",
    "write_page": "study",
    "write_panels": "panels",
    "write_predictions": "predictions",
    "write_results": "results",
}

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOMES)
