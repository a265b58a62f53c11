"""The scenes study: which way of adapting one frozen backbone to six tasks is best?

    python -m benchmarks.study_scenes --minutes=90 --root=runs/study

Every method has the same decoder, the same steps and (decoder_only, scratch and full_ft apart) the
same number of trainable parameters. First each method's own learning rate is chosen on the ``val``
split with seed 0, then three other seeds are scored on the ``test`` split. The script can be
stopped and started again at any time; ``--page`` writes docs/results/scenes.md from what is there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import ROOT, Cell, diverged, is_done, make_parser, result, run
from sinewich_jax.report import study as tables
from sinewich_jax.storage import arrays, atomic
from sinewich_jax.tasks import delta_m

CONFIG = "configs/scenes.py"
BACKBONE = "sinewich_jax/nn/weights/tiny.safetensors"
SEEDS = (1, 2, 3)
TUNING_SEED = 0
TASKS = ("semseg", "human_parts", "saliency", "normals", "depth", "edge")

# Each method's grid of the one rate that is its own: that of all adapters, for the anchored start
# that of the sine factors (their entries are of order one, a LoRA's start near zero), for the rest
# the rate of what they train.
_ADAPTERS = ("task_lr_mult", "adapter_lr_mult")
GRIDS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "sinewich": (("task_lr_mult",), (1.0, 4.0, 10.0, 25.0)),
    "zero": (_ADAPTERS, (0.3, 1.0, 3.0)),
    "lora": (_ADAPTERS, (0.3, 1.0, 3.0)),
    "lora_gain": (_ADAPTERS, (0.3, 1.0, 3.0)),
    "lora_split": (_ADAPTERS, (0.3, 1.0, 3.0)),
    "decoder_only": (("learning_rate",), (1e-3, 3e-3, 1e-2, 3e-2)),
}
# Rows that are there for comparison and take their rate from elsewhere.
BORROWED = {"random_backbone": "sinewich", "scratch": None, "full_ft": None}
NAMES = {
    "sinewich": "Sinewich, anchored start",
    "zero": "Sinewich, zero start (published)",
    "lora": "shared LoRA",
    "lora_gain": "shared LoRA, gain a task",
    "lora_split": "LoRA of rank r/T a task",
    "decoder_only": "decoder only",
    "random_backbone": "Sinewich on a random backbone",
    "scratch": "from scratch, all trained",
    "full_ft": "full fine-tuning",
}


def tuning_cells(method: str) -> dict[float, Cell]:
    """The cells that choose a method's rate, by rate."""
    keys, grid = GRIDS[method]
    return {
        rate: Cell(f"{CONFIG}:{method}", (*((key, rate) for key in keys), ("seed", TUNING_SEED)))
        for rate in grid
    }


def score(results: Mapping[str, Any]) -> float:
    """Mean relative gain over the mean label map, percent: what the tuning maximises."""
    rows = results["tasks"]
    return delta_m(
        {name: rows[name]["value"] for name in rows},
        {name: rows[name]["baseline"] for name in rows},
        {name: rows[name]["higher_is_better"] for name in rows},
    )


def tuned(method: str, root: Path) -> float | None:
    """The best rate of a method, or None while its grid is not finished."""
    cells = tuning_cells(method)
    if not all(is_done(cell, root) for cell in cells.values()):
        return None
    found = {rate: result(cell, root) for rate, cell in cells.items()}
    scores = {rate: score(results) for rate, results in found.items() if results is not None}
    return max(scores, key=scores.get, default=None)


def is_tuned(method: str, root: Path) -> bool:
    """Whether the rate of a method's row was chosen by its grid."""
    source = BORROWED.get(method, method)
    return source is not None and tuned(source, root) is not None


def final_cells(method: str, root: Path) -> list[Cell]:
    """The cells of a method's row, one a seed; at the config's own rate until the grid has run."""
    overrides: tuple[tuple[str, Any], ...] = ()
    source = BORROWED.get(method, method)
    if source is not None and (rate := tuned(source, root)) is not None:
        overrides = tuple((key, rate) for key in GRIDS[source][0])
    return [
        Cell(f"{CONFIG}:{method}", (*overrides, ("eval_split", "test"), ("seed", seed)))
        for seed in SEEDS
    ]


def rows(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished results of every method's row."""
    return {
        method: [r for cell in final_cells(method, root) if (r := result(cell, root)) is not None]
        for method in NAMES
    }


def last_record(cell: Cell, root: Path, key: str) -> float:
    """The last value of ``key`` in a cell's ``metrics.jsonl``; NaN when it was never logged."""
    value = math.nan
    for line in (cell.directory(root) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        value = json.loads(line).get(key, value)
    return math.nan if value is None else value


def seed_count(results: Sequence[Mapping[str, Any]]) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{len(results)} seed{'s' if len(results) > 1 else ''}"


def gains(results: Sequence[Mapping[str, Any]], reference: Mapping[str, float]) -> list[float]:
    """Each run's mean relative change against ``reference``, percent (positive is better)."""
    out = []
    for one in results:
        table = one["tasks"]
        out.append(
            delta_m(
                {task: table[task]["value"] for task in TASKS},
                reference,
                {task: table[task]["higher_is_better"] for task in TASKS},
            )
        )
    return out


def page(root: Path) -> str:
    """docs/results/scenes.md, from what has run."""
    found = rows(root)
    complete = {name: results for name, results in found.items() if len(results) == len(SEEDS)}
    lines = [INTRODUCTION.format(seeds=len(SEEDS), command=main_command(root))]
    lines.append(main_table(complete))
    if "sinewich" in complete:
        lines.append("![Predictions above, ground truth below](scenes_panel.png)\n")
    lines.append(comparison_table(found, complete, root))
    lines.append(verdict(complete))
    lines.append(tuning_table(root))
    lines.append(backbone_section())
    return "\n".join(lines)


def main_command(root: Path) -> str:
    """The command of the first cell of the default row."""
    cells = final_cells("sinewich", root)
    return cells[0].command if cells else f"python train.py --config={CONFIG}"


def main_table(complete: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Per task: mean label map, decoder only, Sinewich, and the ratio to the label map."""
    if "sinewich" not in complete:
        return "The main job: not run.\n"
    ours, heads = complete["sinewich"], complete.get("decoder_only")
    body = []
    for task in TASKS:
        row = ours[0]["tasks"][task]
        values = [r["tasks"][task]["value"] for r in ours]
        other = [r["tasks"][task]["value"] for r in heads] if heads else []
        ratio = sum(values) / len(values) / row["baseline"]
        body.append(
            [
                task,
                f"{row['metric']} {'up' if row['higher_is_better'] else 'down'}",
                f"{row['baseline']:.3f}",
                tables.mean_spread(other) if other else tables.NOT_RUN,
                tables.mean_spread(values),
                f"{ratio:.2f}",
            ]
        )
    headers = ["task", "metric", "mean label map", "decoder only", "Sinewich", "ratio to map"]
    return "## The main job\n\n" + tables.markdown_table(headers, body) + "\n"


def comparison_table(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    complete: Mapping[str, Sequence[Mapping[str, Any]]],
    root: Path,
) -> str:
    """Every method: parameters, tasks, gain over shared LoRA, update cosine, modulation."""
    reference = None
    if "lora" in complete:
        reference = {
            task: sum(r["tasks"][task]["value"] for r in complete["lora"]) / len(SEEDS)
            for task in TASKS
        }
    body = []
    for method, name in NAMES.items():
        results = found[method]
        if not results:
            body.append([name, *[tables.NOT_RUN] * (len(TASKS) + 4)])
            continue
        cells = [c for c in final_cells(method, root) if result(c, root) is not None]
        diagnostics = [
            "none" if all(map(math.isnan, values)) else tables.mean_spread(values, 2)
            for key in ("update_cosine", "modulation_index")
            for values in [[last_record(c, root, key) for c in cells]]
        ]
        body.append(
            [
                name
                + (f" ({seed_count(results)})" if len(results) < len(SEEDS) else "")
                + ("" if is_tuned(method, root) else " †"),
                f"{results[0]['trainable']:,}",
                *(tables.mean_spread([r["tasks"][t]["value"] for r in results]) for t in TASKS),
                tables.mean_spread(gains(results, reference), 2) if reference else tables.NOT_RUN,
                *diagnostics,
            ]
        )
    headers = ["method", "trainable", *TASKS, "Delta m % (vs shared LoRA)", "cosine", "max mu"]
    note = "† at the config's default rates: its grid was not run, or it has none."
    return "## Methods\n\n" + tables.markdown_table(headers, body) + f"\n{note}\n"


def verdict(complete: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One sentence that says which equal-parameter method wins, and whether by a margin."""
    rivals = [m for m in ("sinewich", "zero", "lora", "lora_gain", "lora_split") if m in complete]
    if len(rivals) < 5:
        return "Which method wins at equal parameters: not run.\n"
    reference = {
        task: sum(r["tasks"][task]["value"] for r in complete["lora"]) / len(SEEDS)
        for task in TASKS
    }
    scores = {m: gains(complete[m], reference) for m in rivals}
    means = {m: sum(v) / len(v) for m, v in scores.items()}
    ordered = sorted(rivals, key=means.get, reverse=True)
    first, second = ordered[:2]
    margin = means[first] - means[second]
    spread = max(max(v) - min(v) for v in (scores[first], scores[second]))
    certain = "more than" if margin > spread else "less than"
    return (
        f"At equal parameters **{NAMES[first]}** has the highest mean Delta m "
        f"({means[first]:+.2f} %), then {NAMES[second]} ({means[second]:+.2f} %). The difference "
        f"is {certain} the range over seeds ({spread:.2f}), so it is "
        f"{'a result' if margin > spread else 'a tie'}.\n"
    )


def tuning_table(root: Path) -> str:
    """The grid of each method with its score on the validation split."""
    body = []
    for method, (keys, _) in GRIDS.items():
        best = tuned(method, root)
        for rate, cell in tuning_cells(method).items():
            results = result(cell, root)
            step = diverged(cell, root)
            value = tables.NOT_RUN if step is None else f"diverged at step {step}"
            value = value if results is None else f"{score(results):.2f}"
            mark = " (chosen)" if rate == best else ""
            body.append([NAMES[method], ", ".join(keys), f"{rate:g}{mark}", value])
    headers = ["method", "key", "value", "gain over the mean label map, val, seed 0, %"]
    return "## Learning rates\n\n" + tables.markdown_table(headers, body) + "\n"


def backbone_section() -> str:
    """How the frozen backbone was made, from the header of its file."""
    _, header = arrays.load_safetensors(ROOT / BACKBONE)
    results = json.loads(header["results"])
    config = results["config"]
    return (
        "## The frozen backbone\n\n"
        f"`{BACKBONE}` was pretrained for {config['steps']:,} steps of {config['batch_size']} "
        f"pictures (objective `{config['objective']}`, seed {config['seed']}), without any label "
        "map, by\n\n"
        f"    {header['command']}\n\n"
        f"On {config['held_out']} held-out pictures the L1 of hidden pixels is "
        f"{results['held_out_l1_of_hidden_pixels']:.3f} (normalised colours); the mean colour has "
        f"{results['held_out_l1_of_mean_colour']:.3f}.\n"
    )


INTRODUCTION = """# Six tasks on procedural scenes

Made by `python -m benchmarks.study_scenes`; every number is read from the runs' `results.json`.
Mean and sample standard deviation over {seeds} seeds on the `test` split (256 scenes of 64 x 64
pixels whose seeds no other split shares). A method runs at its own learning rate, chosen on `val`
with another seed, once its grid (last table) has run; until then, marked †, at the config's. The
grids are over the rate of what a method adds: the decoder, which all share, learns at the config's
`learning_rate` times its `decoder_lr_mult` everywhere but in "decoder only", which has nothing else
to tune, so that its grid moves the decoder. One cell of the default row:

    {command}

"Delta m" here is the mean relative change over the six tasks against shared LoRA (positive is
better); "cosine" is the mean pairwise cosine of the tasks' kernel updates at the end, averaged over
layers (1: all tasks share one direction up to a scalar); "max mu" the largest modulation index.
"""


def publish(root: Path) -> None:
    """Writes the page, its pictures, and the picture and table of the README."""
    folder = ROOT / "docs" / "results"
    complete = {name: r for name, r in rows(root).items() if len(r) == len(SEEDS)}
    tables.write_page(folder / "scenes.md", page(root))
    if "sinewich" not in complete:
        return
    first = final_cells("sinewich", root)[0].directory(root)
    atomic.write_bytes(
        folder / "scenes_panel.png", (first / "panels" / "overview.png").read_bytes()
    )
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = between(
        text, "picture", "![Predictions and ground truth](docs/results/scenes_panel.png)"
    )
    table = main_table(complete).split("\n", 2)[2].strip()
    note = (
        f"Mean and sample standard deviation over {len(SEEDS)} seeds. All rows, with what has not "
        "run: [docs/results/scenes.md](docs/results/scenes.md)."
    )
    atomic.write_text(readme, between(text, "table", f"{table}\n\n{note}"))


def between(text: str, name: str, content: str) -> str:
    """``text`` with what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` replaced."""
    before, _, rest = text.partition(f"<!-- {name} -->")
    _, _, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}"


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = make_parser(__doc__)
    parser.add_argument("--no-tuning", action="store_true", help="rows only, at known rates")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    arguments = parser.parse_args()
    if not arguments.page:
        end = time.monotonic() + 60 * arguments.minutes
        if not arguments.no_tuning:
            grids = [method for method in GRIDS if method in arguments.methods]
            tuning = [cell for method in grids for cell in tuning_cells(method).values()]
            run(tuning, arguments.root, arguments.minutes, arguments.jobs)
        # Seed by seed, so that a short budget gives every method one seed before any has three.
        by_method = [final_cells(method, arguments.root) for method in arguments.methods]
        final = [cells[i] for i in range(len(SEEDS)) for cells in by_method if len(cells) > i]
        run(final, arguments.root, (end - time.monotonic()) / 60, arguments.jobs)
    publish(arguments.root)


if __name__ == "__main__":
    main()
