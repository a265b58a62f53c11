"""Real photographs: street scenes (ccp) and one kitchen (kitchen) on ImageNet's MobileNetV2.

    SINEWICH_DATA=DIR python -m benchmarks.study_photographs --minutes=90 --root=runs/study

Each cell is one run of configs/ccp.py or configs/kitchen.py at its default rates. The script can be
stopped and started again; ``--page`` writes docs/results/photographs.md from what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import ROOT, Cell, make_parser, result, run
from sinewich_jax.report.study import Page

SETS = {
    "ccp": ("semseg", "human_parts", "saliency", "edge"),
    "kitchen": ("semseg", "normals", "depth", "edge"),
}
METHODS = {
    "sinewich": "Sinewich, anchored start",
    "decoder_only": "decoder only",
    "lora": "shared LoRA",
    "lora_split": "LoRA of rank r/T a task",
}
SEEDS = (1, 2, 3)


def cell(name: str, method: str, seed: int) -> Cell:
    """One run."""
    return Cell(f"configs/{name}.py:{method}", (("seed", seed),))


def found(name: str, method: str, root: Path) -> list[dict[str, Any]]:
    """The finished results of a row."""
    results = (result(cell(name, method, seed), root) for seed in SEEDS)
    return [r for r in results if r is not None]


def section(page: Page, name: str, root: Path) -> None:
    """The table of one data set: mean label map, then every method."""
    rows = {method: found(name, method, root) for method in METHODS}
    any_row = next((results[0] for results in rows.values() if results), None)
    body: dict[str, Mapping[str, Any]] = {
        "mean label map": {
            task: f"{any_row['tasks'][task]['baseline']:.3f}" if any_row else None
            for task in SETS[name]
        }
        | {"seeds": "none", "train minutes": "none"}
    }
    for method, title in METHODS.items():
        results: Sequence[Mapping[str, Any]] = rows[method]
        row: dict[str, Any] = {
            task: [r["tasks"][task]["value"] for r in results] or None for task in SETS[name]
        }
        row["seeds"] = str(len(results))
        row["train minutes"] = [r["train_seconds"] / 60 for r in results] or None
        body[title] = row
    units = {}
    if any_row:
        for task in SETS[name]:
            facts = any_row["tasks"][task]
            arrow = "up" if facts["higher_is_better"] else "down"
            units[task] = f"{task}: {facts['metric']} {facts['unit']} ({arrow} is better)"
    page.table(
        name,
        body,
        (*SETS[name], "seeds", "train minutes"),
        command=f"SINEWICH_DATA=DIR {cell(name, 'sinewich', SEEDS[0]).command}",
    )
    if units:
        page.text("; ".join(units.values()) + ".")


def page(root: Path) -> Page:
    """docs/results/photographs.md, from what has run."""
    made = Page("Real photographs").text(
        "Made by `python -m benchmarks.study_photographs`; every number is read from the runs' "
        f"`results.json`. Mean and sample standard deviation over up to {len(SEEDS)} seeds on the "
        "test split. `train minutes` are wall time of runs that shared the machine with others, "
        "so they are an upper bound.",
        "The mean label map looks at no image; it is the least that a model must beat. The kitchen "
        "is one static room split by trajectory: its test measures new viewpoints, not new scenes. "
        "Learning rates are the configs' defaults for every method: this page compares with the "
        "label map, not methods with each other.",
    )
    for name in SETS:
        section(made, name, root)
    return made


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    if not arguments.page:
        cells = [cell(n, m, seed) for seed in SEEDS for m in arguments.methods for n in SETS]
        run(cells, arguments.root, arguments.minutes, arguments.jobs)
    page(arguments.root).write(ROOT / "docs" / "results" / "photographs.md")


if __name__ == "__main__":
    main()
