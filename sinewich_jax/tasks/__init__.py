"""Tasks: a task is a head width, a loss, a metric and a way to show a label to people.

There are two kinds. A :class:`DenseTask` says something about every pixel of an image and draws
it; six are built in, in this order: semseg, human_parts, saliency, normals, depth, edge. A
:class:`TextTask` says something about a text or a pair of texts and puts it into words: the tasks
of GLUE (cola, sst2, mrpc, rte, ...), of similarity (sts, sick_relatedness, stsb) and of intent and
sentiment (snips, trec, mr, ...); ``names(TextTask)`` lists them. A user adds one by registering a
function that returns a :class:`Task`; nothing else has to change::

    from sinewich_jax import tasks

    @tasks.register("heat")
    def heat() -> tasks.Task:
        return tasks.make("depth", name="heat", unit="K")

Losses and metrics of dense tasks follow the multi-task dense-prediction literature (ASTMT, MTI-Net,
ATRC, InvPT, MTLoRA), written from their descriptions; where those disagree, the docstring says
which one is meant. Those of text tasks are what GLUE reports. Two rules hold everywhere: validity
is a separate boolean mask (never a magic label value), and every ratio is a fraction in [0, 1]
(only ``delta_m`` is in percent).
"""

from __future__ import annotations

import importlib

from sinewich_jax.tasks.base import Metric, State, Task, make, names, register, with_class_names
from sinewich_jax.tasks.delta import delta_m
from sinewich_jax.tasks.dense import DenseTask
from sinewich_jax.tasks.references import REFERENCES, ReferenceTable, reference_table

# Imported for their registrations, in the order in which tasks are listed everywhere.
for _module in ("segmentation", "saliency", "normals", "depth", "edge"):
    importlib.import_module(f"{__name__}.{_module}")

from sinewich_jax.tasks.text import TextTask  # noqa: E402  Registers text tasks, behind the others.

__all__ = [
    "REFERENCES",
    "DenseTask",
    "Metric",
    "ReferenceTable",
    "State",
    "Task",
    "TextTask",
    "delta_m",
    "make",
    "names",
    "reference_table",
    "register",
    "with_class_names",
]
