"""Which library wrote a file, told by the names in it alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from sinewich_jax.convert.names import FAMILIES
from sinewich_jax.errors import CheckpointError

_ANCHORS = {"official": "patch_embed.proj.weight", "hf": FAMILIES["hf5"]["patch_embed_proj"]}
_ANCHORS["hf"] = f"{_ANCHORS['hf']}.weight"
_BLOCKS = {
    "official": r"layers\.(\d{1,4})\.blocks\.(\d{1,4})\.",
    "hf": r"encoder\.layers\.(\d{1,4})\.blocks\.(\d{1,4})\.",
}
# What other networks have in the same places.
_OTHERS = (
    (r".*\.(logit_scale|cpb_mlp\..*|continuous_position_bias_mlp\..*)", "a Swin V2"),
    (r".*lora_[A-Za-z]+.*|.*\.linear\.(weight|bias)", "a Swin with adapters of another library"),
    (r"(.*\.)?(cls_token|class_token|pos_embed)", "a plain vision transformer"),
    (r".*running_mean", "a convolutional network"),
)
_HINT = "expected a Swin V1 under official, timm or transformers names"


class Family(NamedTuple):
    """Where a Swin lies in a file.

    Attributes:
      name: one of :data:`~sinewich_jax.convert.names.FAMILIES`.
      prefix: what comes before its names (``backbone.``, ``swin.`` or nothing).
      depths: blocks of each stage.
    """

    name: str
    prefix: str
    depths: tuple[int, ...]


def recognise(keys: Iterable[str], where: str) -> Family:
    """The library whose names these are.

    The patch embedding shows the prefix and tells transformers from the others; attention tells its
    releases apart, and the stage to which patch merging is counted tells timm from the original.

    Args:
      keys: the names of all tensors.
      where: the file, for messages.

    Raises:
      CheckpointError: the names of another architecture, of this library's own files, or of two
        networks at once.
    """
    keys = list(keys)
    if "patch_embed_proj/kernel" in keys:
        raise CheckpointError(
            f"{where} has this library's own names already; give it as backbone_weights as it is"
        )
    found = [
        (kind, key.removesuffix(anchor))
        for kind, anchor in _ANCHORS.items()
        for key in keys
        if key == anchor or key.endswith(f".{anchor}")
    ]
    if len(found) > 1:
        places = " and ".join(repr(prefix) for _, prefix in found[:2])
        raise CheckpointError(
            f"{where} holds {len(found)} networks, under {places}; save the one that you want alone"
        )
    if not found:
        raise CheckpointError(f"{where} is {_other(keys)}; {_HINT}")
    ((kind, prefix),) = found
    own = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    places = {
        (int(match[1]), int(match[2])) for key in own if (match := re.match(_BLOCKS[kind], key))
    }
    depths = _depths(places)
    if not depths or not any("relative_position_bias_table" in key for key in own):
        raise CheckpointError(f"{where} is {_other(own)}; {_HINT}")
    if kind == "hf":
        name = "hf4" if any(".attention.self." in key for key in own) else "hf5"
    else:
        # The last stage has no merging in the original, the first has none in timm.
        last = f"layers.{len(depths) - 1}.downsample."
        name = "timm" if any(key.startswith(last) for key in own) else "official"
    return Family(name, prefix, depths)


def _depths(places: set[tuple[int, int]]) -> tuple[int, ...]:
    """The depth of each stage by the largest numbers; () when they cannot be a count."""
    stages = 1 + max((stage for stage, _ in places), default=-1)
    if stages > len(places):
        return ()
    depths = [1 + max((b for s, b in places if s == stage), default=-1) for stage in range(stages)]
    # A missing block is reported later by its names; numbers beyond all reason are refused here.
    return () if 0 in depths or sum(depths) > 2 * len(places) else tuple(depths)


def _other(keys: list[str]) -> str:
    for pattern, word in _OTHERS:
        hit = next((key for key in keys if re.fullmatch(pattern, key)), None)
        if hit is not None:
            return f"{word} (it has {hit!r})"
    some = ", ".join(repr(key) for key in keys[:3]) or "nothing"
    return f"no network that is known here (it starts with {some})"
