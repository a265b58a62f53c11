"""The merging study: what curvature from training is worth, on digits and on eight real tasks.

    SINEWICH_DATA=DIR python -m benchmarks.study_merging --minutes=90 --root=runs/study

(a) the curvature that an optimizer keeps against the exact Fisher information; (b) pruning by it;
(c) every merge rule on eight real classification tasks; (d) the optimizers against others. The
script can be stopped and started again at any time; ``--page`` writes docs/results/merging.md from
what is there. Without SINEWICH_DATA part (c) is not run.
"""

from __future__ import annotations

import dataclasses
import time

from benchmarks import cells, merging_page
from benchmarks.merging_plan import PARTS, SEEDS, full, tiny
from benchmarks.study import ROOT

MODULE = "benchmarks.study_merging"


def main() -> None:
    """Runs what is missing, then writes the page; or runs one cell for another process."""
    arguments = cells.make_parser(__doc__, list(PARTS), SEEDS).parse_args()
    root = arguments.root
    study = (tiny if arguments.tiny else full)(root)
    if arguments.cell:
        cell = cells.Cell(*arguments.cell)
        cells.record(cell, root, study.call(cell))
        return
    if not arguments.page:
        chosen = study if arguments.tiny else dataclasses.replace(study, seeds=arguments.seeds)
        end = time.monotonic() + 60 * arguments.minutes
        module = (MODULE, "--tiny") if arguments.tiny else (MODULE,)
        for stage in chosen.stages(arguments.parts):
            todo = chosen.cells(stage, arguments.parts)
            cells.run(module, todo, root, end, arguments.jobs)
    if not arguments.tiny:
        merging_page.write(study, ROOT / "docs" / "results")


if __name__ == "__main__":
    main()
