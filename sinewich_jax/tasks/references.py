"""Published single-task results that Delta m may be taken against, each with its source.

Numbers of two protocols must not be mixed: a table belongs to one data set, backbone, resolution
and set of metrics, and Delta m against it says something only for a run under the same protocol.
Your own single-task runs are the better reference; these are for comparing with papers.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from sinewich_jax.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class ReferenceTable:
    """Single-task results of one protocol.

    Attributes:
      scored_on: what a run's config must say for a comparison, as far as the source says it:
        ``data``, ``image_size``, ``eval_resolution``.
      protocol: backbone, pretraining, resolution.
      values: the primary metric by task: mIoU and max mIoU as fractions, normals in degrees, depth
        RMSE in metres.
      source: where the numbers come from.
    """

    scored_on: Mapping[str, Any]
    protocol: str
    values: Mapping[str, float]
    source: str


def _table(
    scored_on: Mapping[str, Any], protocol: str, source: str, **values: float
) -> ReferenceTable:
    frozen = types.MappingProxyType
    return ReferenceTable(frozen(dict(scored_on)), protocol, frozen(values), source)


REFERENCES: Mapping[str, ReferenceTable] = types.MappingProxyType(
    {
        "pascal_context_swin_t": _table(
            {"data": "pascal_mt", "image_size": [448, 448], "eval_resolution": "train"},
            "one fully fine-tuned Swin-T (ImageNet-1k) a task, 448 x 448",
            "MTLoRA (arXiv 2403.20320), also the dictionary in TADFormer's configs",
            semseg=0.6721,
            human_parts=0.6193,
            saliency=0.6235,
            normals=17.97,
        ),
        "nyud_swin_t_faar": _table(
            {"data": "nyud_mt"},
            "one fully fine-tuned Swin-T a task, three tasks",
            "FAAR (CVPR 2026), table for NYUD-v2",
            semseg=0.4265,
            depth=0.60,
            normals=22.83,
        ),
        "nyud_swin_t_fork": _table(
            {"data": "nyud_mt"},
            "one fully fine-tuned Swin-T a task, a third party's runs",
            "configuration of the TADFormer fork by Malygossssss; its edge score is another metric",
            semseg=0.4065,
            depth=0.6436,
            normals=22.97,
        ),
    }
)


def reference_table(name: str) -> ReferenceTable:
    """The table ``name``.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in REFERENCES:
        raise ConfigError(f"no reference table is called {name!r}{did_you_mean(name, REFERENCES)}")
    return REFERENCES[name]
