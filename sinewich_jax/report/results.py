"""``results.md``: one run on one page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sinewich_jax import config as configs
from sinewich_jax import storage
from sinewich_jax.report import curves, metric_names, tables

NOT_KNOWN = "not known"
UNDEFINED = "undefined"
PAGE = "results.md"
OVERVIEW = "panels/overview.png"
ANSWERS = "panels/answers.md"
ATTENTION = "diagnostics/attention.png"


class _Words(NamedTuple):
    """How a page speaks of what a run reads.

    Attributes:
      constant: what the mean label does without.
      step: what a step has so many of.
      speed: what a second has so many of.
    """

    constant: str
    step: str
    speed: str


_WORDS = {
    "image": _Words("looks at no image", "images a step", "images/s"),
    "text": _Words("reads no text", "texts of each task a step", "texts/s of each task"),
}


def write_results(workdir: str | os.PathLike[str], results: Mapping[str, Any]) -> Path:
    """Writes ``results.md``, and ``curves.png`` where there is a ``metrics.jsonl``.

    ``results.json`` is left to whoever made the results: its presence marks a run as complete.

    Args:
      workdir: the work directory; its ``config.json``, ``metrics.jsonl`` and panels are mentioned
        when they are there.
      results: content of ``results.json``, as ``train.evaluate.make_results`` makes it.

    Returns:
      The path of the page.
    """
    workdir = Path(workdir)
    pictures = {}
    if (workdir / OVERVIEW).exists():
        pictures[OVERVIEW] = "Predictions above, ground truth below"
    if (drawn := curves.write_curves(workdir)) is not None:
        pictures[drawn.name] = "Training curves"
    if (workdir / ATTENTION).exists():
        pictures[ATTENTION] = "What the fusion attends to, by layer and adapter"
    config_file = workdir / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    answers = ANSWERS if (workdir / ANSWERS).exists() else None
    storage.write_text(workdir / PAGE, result_page(results, config, pictures, answers))
    return workdir / PAGE


def result_page(
    results: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    pictures: Mapping[str, str] | None = None,
    answers: str | None = None,
) -> str:
    """The page as Markdown.

    Args:
      results: ``{"tasks": {name: {"metric", "unit", "higher_is_better", "value", "baseline",
        "reference", "all"}}, "delta_m": percent or None, ...}``. Everything else is optional:
        ``trainable``, ``total``, ``protocol``, ``method``, ``steps``, ``seed``, ``switching``,
        ``notes`` (what the data set decided on reading, by name), ``train_seconds``,
        ``images_per_second``, ``command``, ``inputs`` (what the model reads, ``"image"`` or
        ``"text"``; left out, images).
      config: content of ``config.json``.
      pictures: relative path and description of pictures to show.
      answers: relative path of a page of texts and answers.
    """
    config, words = config or {}, _WORDS[results.get("inputs", "image")]
    title = ", ".join(
        str(part)
        for part in (
            config.get("data"),
            results.get("method"),
            f"seed {results['seed']}" if "seed" in results else None,
        )
        if part is not None
    )
    parts = [f"# Results{f': {title}' if title else ''}\n", _primary_table(results["tasks"], words)]
    parts.append(_delta_line(results))
    parts.append("".join(f"* {line}\n" for line in _facts(results, config, words)))
    if "command" in results:
        parts.append(tables.command_block(results["command"]))
    parts.extend(f"![{text}]({path})\n" for path, text in (pictures or {}).items())
    if answers is not None:
        parts.append(f"Some texts, and what the model said of them: [answers]({answers}).\n")
    parts.append("## All metrics\n")
    parts.append(_all_table(results["tasks"]))
    parts.append(_class_lines(results["tasks"]))
    return "\n".join(part for part in parts if part)


def ratio(value: float | None, baseline: float | None) -> str:
    """``value / baseline`` as text; "undefined" when the baseline is 0."""
    if not (_known(value) and _known(baseline)):
        return "no value"
    return f"{value / baseline:.2f}×" if baseline else UNDEFINED


def relative_change(value: float | None, reference: float | None, higher_is_better: bool) -> str:
    """The task's part of Delta m in percent, positive is better: ``s (M - B) / B``."""
    if not _known(reference):
        return NOT_KNOWN
    if not _known(value):
        return "no value"
    if reference <= 0:
        return UNDEFINED
    sign = 1.0 if higher_is_better else -1.0
    return f"{sign * 100.0 * (value - reference) / reference:+.1f} %"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _primary_table(tasks: Mapping[str, Mapping[str, Any]], words: _Words) -> str:
    rows = []
    for name, row in tasks.items():
        unit, up = row["unit"], row["higher_is_better"]
        metric = metric_names.label(row["metric"])
        rows.append(
            [
                name,
                f"{metric}{f' [{unit}]' if unit else ''} {'↑' if up else '↓'}",
                metric_names.number(row["value"], unit),
                metric_names.number(row["baseline"], unit),
                ratio(row["value"], row["baseline"]),
                metric_names.number(row["reference"], unit, NOT_KNOWN),
                relative_change(row["value"], row["reference"], up),
            ]
        )
    headers = ("task", "metric", "value", "mean label", "ratio", "single task", "change")
    legend = (
        "↑ more is better, ↓ less is better. *Mean label*: the constant prediction made of the "
        f"training labels, which {words.constant}; *ratio*: value over mean label. *Single task*: "
        "a model trained for that task alone; *change*: relative to it, positive is better.\n"
    )
    return tables.markdown_table(headers, rows, "llrrrrr") + "\n" + legend


def _delta_line(results: Mapping[str, Any]) -> str:
    delta = results.get("delta_m")
    if _known(delta):
        return f"**Delta m: {delta:+.2f} %** against the single-task references.\n"
    tasks = results["tasks"]
    missing = [name for name, row in tasks.items() if not _known(row["reference"])]
    if not missing:
        return "**Delta m: not known**; a value or a reference is not a positive number.\n"
    lacking = "" if len(missing) == len(tasks) else f" for {', '.join(missing)}"
    return (
        f"**Delta m: not known**, no single-task reference{lacking}; "
        "`sinewich evaluate WORKDIR --reference RUN` adds them.\n"
    )


def _facts(results: Mapping[str, Any], config: Mapping[str, Any], words: _Words) -> list[str]:
    lines = []
    if "trainable" in results and "total" in results:
        trainable, total = results["trainable"], results["total"]
        lines.append(
            f"Parameters: {trainable:,} trainable of {total:,} ({100 * trainable / total:.1f} %)"
        )
    protocol = [results["protocol"]] if "protocol" in results else []
    if "steps" in results:
        planned = config.get("steps", results["steps"])
        of = f" of {planned}" if planned != results["steps"] else ""
        protocol.append(f"after {results['steps']}{of} steps")
    if "batch_size" in config:
        protocol.append(f"{config['batch_size']} {words.step}")
    if "seed" in results:
        protocol.append(f"seed {results['seed']}")
    if protocol:
        lines.append("Protocol: " + ", ".join(protocol))
    if results.get("notes"):
        lines.append(
            "Data: " + "; ".join(f"{key}: {text}" for key, text in results["notes"].items())
        )
    variants = {
        metric_names.label(row["metric"]): metric_names.meaning(row["metric"])
        for row in results["tasks"].values()
        if metric_names.meaning(row["metric"])
    }
    if variants:
        listed = "".join(f"\n  * {label}: {meaning}" for label, meaning in variants.items())
        lines.append("Metric variants:" + listed)
    speed = []
    if _known(results.get("train_seconds")):
        speed.append(f"{_duration(results['train_seconds'])} of wall time")
    if _known(results.get("images_per_second")):
        speed.append(f"{results['images_per_second']:.1f} {words.speed}")
    if speed:
        lines.append("Training: " + ", ".join(speed))
    switching = results.get("switching") or {}
    if switching:
        lines.append(
            "Switching: "
            + ", ".join(
                f"{key.replace('_', ' ')} {metric_names.number(value)}"
                for key, value in switching.items()
            )
        )
    if config:
        lines.append("Config (`config.json`) other than the defaults: " + _changed(config))
    return lines


def _changed(config: Mapping[str, Any]) -> str:
    """The keys of a recorded config that do not have their default value."""
    defaults = configs.flatten(configs.to_dict(configs.Config()))
    changed = [
        f"`{key}={json.dumps(value)}`"
        for key, value in sorted(configs.flatten(config).items())
        if key not in defaults or value != defaults[key]
    ]
    return ", ".join(changed) if changed else "none"


def _all_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, row in tasks.items():
        for key, value in row["all"].items():
            if "/" not in key:
                unit = row["unit"] if key == row["metric"] else metric_names.unit(key)
                metric = f"{metric_names.label(key)}{f' [{unit}]' if unit else ''}"
                rows.append(
                    [name, metric, metric_names.number(value, unit), metric_names.meaning(key)]
                )
    return tables.markdown_table(("task", "metric", "value", "meaning"), rows, "llrl")


def _class_lines(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a task over classes: the IoU of each."""
    lines = []
    for name, row in tasks.items():
        values = {
            key.removeprefix("iou/"): value
            for key, value in row["all"].items()
            if key.startswith("iou/")
        }
        if values:
            listed = ", ".join(f"{c} {metric_names.number(v)}" for c, v in values.items())
            lines.append(f"* IoU of each class, {name}: {listed}\n")
    return "".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
