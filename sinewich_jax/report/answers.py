"""What a model said of some texts, beside what is right: the panels of text tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinewich_jax import storage
from sinewich_jax.report import tables
from sinewich_jax.tasks import TextTask

PAGE = "answers.md"
MOST = 200
"""Characters of a text that are shown."""


def write_answers(
    directory: str | os.PathLike[str],
    tasks: Sequence[TextTask],
    examples: Sequence[Mapping[str, Any]],
) -> Path:
    """Writes a page with a table of texts for each task.

    Args:
      directory: where to; made when missing.
      tasks: the tasks.
      examples: each with ``words`` {task: (first, second or None, label), or None}, ``labels``,
        ``valid`` and ``predictions`` {task: number}.

    Returns:
      The path of the page.
    """
    path = Path(directory) / PAGE
    storage.write_text(path, answer_page(tasks, examples))
    return path


def answer_page(tasks: Sequence[TextTask], examples: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown; arguments as of :func:`write_answers`."""
    parts = ["# Answers\n"]
    for task in tasks:
        rows = [_row(task, one) for one in examples if one["valid"][task.name]]
        head = ("text", *(("second text",) if task.pair else ()), "right", "answer", "")
        parts += [f"## {task.name}\n", tables.markdown_table(head, rows, "l" * len(head))]
    return "\n".join(parts)


def _row(task: TextTask, example: Mapping[str, Any]) -> tuple[str, ...]:
    first, second, _ = example["words"][task.name]
    right = task.words(example["labels"][task.name])
    answer = task.words(example["predictions"][task.name])
    texts = (first, second) if task.pair else (first,)
    # Two numbers are hardly ever the same, and a table of nothing but "wrong" says little.
    wrong = "wrong" if task.channels > 1 and right != answer else ""
    return (*map(_shown, texts), right, answer, wrong)


def _shown(text: str) -> str:
    """One line that reads as it stands: nothing in it is Markdown."""
    text = " ".join(text.split())
    text = text if len(text) <= MOST else f"{text[: MOST - 1]}…"
    return re.sub(r"([\\`*_~<>\[\]$])", r"\\\1", text)
