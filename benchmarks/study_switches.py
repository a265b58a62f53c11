"""The switching study: a task in one and a half bits, on digits and on eight real tasks.

    SINEWICH_DATA=DIR python -m benchmarks.study_switches --minutes=60 --root=runs/study

(a) six tasks of digits; (b) eight real tasks, on the bases and experts of the merging study where
the root has them; (l) learned switches of both. The script can be stopped and started again at any
time; ``--page`` writes docs/results/switches.md from what is there. Without SINEWICH_DATA only
digits are run.
"""

from __future__ import annotations

import dataclasses
import time

from benchmarks import cells, switching_page
from benchmarks.study import ROOT
from benchmarks.switching_plan import PARTS, SEEDS, Study, full, owner, tiny

MODULE = "benchmarks.study_switches"


def main() -> None:
    """Runs what is missing, then writes the page; or runs one cell for another process."""
    arguments = cells.make_parser(__doc__, list(PARTS), SEEDS).parse_args()
    study = (tiny if arguments.tiny else full)(arguments.root)
    if arguments.cell:
        kind, text = arguments.cell
        cell = cells.Cell(kind, text, owner(kind))
        cells.record(cell, arguments.root, study.call(cell))
        return
    if not arguments.page:
        chosen = study if arguments.tiny else dataclasses.replace(study, seeds=arguments.seeds)
        end = time.monotonic() + 60 * arguments.minutes
        run(chosen, arguments.parts, end, arguments.jobs, arguments.tiny)
    if not arguments.tiny:
        switching_page.write(study, ROOT / "docs" / "results")


def run(study: Study, parts: list[str], end: float, jobs: int, tried: bool) -> None:
    """Stage by stage, until ``end`` on the clock of ``time.monotonic``."""
    module = (MODULE, "--tiny") if tried else (MODULE,)
    for stage in study.stages(parts):
        cells.run(module, study.cells(stage, parts), study.root, end, jobs)


if __name__ == "__main__":
    main()
