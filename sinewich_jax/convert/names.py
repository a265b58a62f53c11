"""Whose parameter is called what: one table of module names a library, and how layouts differ.

Read downwards, a table is a specification: on the left our module, on the right theirs, with
``{s}`` the stage, ``{b}`` the block and ``{n}`` the stage after. The tables work in both
directions: :func:`rules` writes them out for a network of known depth, reading turns their arrays
into ours, writing ours into theirs.

``official`` are the files of the Swin authors, ``timm`` those of timm from 0.9 on (which counts
patch merging to the stage that follows), ``hf4`` what transformers writes to files (4.x modules
have the same names; 5.x still writes and reads them), ``hf5`` the modules of transformers 5.x as
their ``state_dict()`` lists them. A module of theirs that is a tuple is one of ours in parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Names = str | tuple[str, ...]

_OFFICIAL: dict[str, Names] = {
    "patch_embed_proj": "patch_embed.proj",
    "patch_embed_norm": "patch_embed.norm",
    "stage{s}_block{b}/norm1": "layers.{s}.blocks.{b}.norm1",
    "stage{s}_block{b}/qkv": "layers.{s}.blocks.{b}.attn.qkv",
    "stage{s}_block{b}/bias_table": "layers.{s}.blocks.{b}.attn.relative_position_bias_table",
    "stage{s}_block{b}/proj": "layers.{s}.blocks.{b}.attn.proj",
    "stage{s}_block{b}/norm2": "layers.{s}.blocks.{b}.norm2",
    "stage{s}_block{b}/fc1": "layers.{s}.blocks.{b}.mlp.fc1",
    "stage{s}_block{b}/fc2": "layers.{s}.blocks.{b}.mlp.fc2",
    "merge{s}/norm": "layers.{s}.downsample.norm",
    "merge{s}/reduction": "layers.{s}.downsample.reduction",
}
_TIMM: dict[str, Names] = {
    **_OFFICIAL,
    "merge{s}/norm": "layers.{n}.downsample.norm",
    "merge{s}/reduction": "layers.{n}.downsample.reduction",
}
_BLOCK = "encoder.layers.{s}.blocks.{b}."
_HF5: dict[str, Names] = {
    "patch_embed_proj": "embeddings.patch_embeddings.projection",
    "patch_embed_norm": "embeddings.norm",
    "stage{s}_block{b}/norm1": _BLOCK + "layernorm_before",
    "stage{s}_block{b}/qkv": tuple(_BLOCK + f"attention.{part}_proj" for part in "qkv"),
    "stage{s}_block{b}/bias_table": _BLOCK
    + "attention.relative_position_bias.relative_position_bias_table",
    "stage{s}_block{b}/proj": _BLOCK + "attention.o_proj",
    "stage{s}_block{b}/norm2": _BLOCK + "layernorm_after",
    "stage{s}_block{b}/fc1": _BLOCK + "mlp.fc1",
    "stage{s}_block{b}/fc2": _BLOCK + "mlp.fc2",
    "merge{s}/norm": "encoder.layers.{s}.downsample.norm",
    "merge{s}/reduction": "encoder.layers.{s}.downsample.reduction",
}
_HF4: dict[str, Names] = {
    **_HF5,
    "stage{s}_block{b}/qkv": tuple(
        _BLOCK + f"attention.self.{part}" for part in ("query", "key", "value")
    ),
    "stage{s}_block{b}/bias_table": _BLOCK + "attention.self.relative_position_bias_table",
    "stage{s}_block{b}/proj": _BLOCK + "attention.output.dense",
    "stage{s}_block{b}/fc1": _BLOCK + "intermediate.dense",
    "stage{s}_block{b}/fc2": _BLOCK + "output.dense",
}
FAMILIES: dict[str, dict[str, Names]] = {
    "official": _OFFICIAL,
    "timm": _TIMM,
    "hf4": _HF4,
    "hf5": _HF5,
}
"""Our module -> theirs, for each library."""

TASK_BRANCH = {
    "official": "layers.{s}.blocks.{b}.task_mlp.{layer}",
    "timm": "layers.{s}.blocks.{b}.task_mlp.{layer}",
    "hf4": _BLOCK + "task_mlp.{layer}",
    "hf5": _BLOCK + "task_mlp.{layer}",
}
"""Where an export keeps the second MLP of a stage's last block (:mod:`~.convert.fold`)."""

NOT_NEEDED = (
    r"(.*\.)?(relative_position_index|attn_mask)",  # remade from the window
    r"(head|norm|head\.fc)\.(weight|bias)",  # classifier and its norm, official and timm
    r"norm[0-3]\.(weight|bias)",  # output norms of detectors
    r"(layernorm|embeddings\.layernorm)\.(weight|bias)",
    r"(classifier|head)\.(weight|bias)",
    r"(hidden_states_norms|hf_hidden_states_norms)\..*",  # output norms of SwinBackbone
    r"(embeddings\.)?mask_token",  # of masked pretraining
)
"""Keys that a pyramid without a classifier has no use for, as regular expressions."""

FOREIGN_POSITION = r"absolute_pos_embed|embeddings\.position_embeddings"
"""Keys of an option that changes what the network computes, and that we do not have."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter of ours and where it is over there.

    Attributes:
      ours: its path, ``stage0_block1/qkv/kernel``.
      theirs: the keys; several where they hold it in parts.
      read: their arrays, in the order of ``theirs``, to ours.
      write: ours to their arrays.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[np.ndarray]], np.ndarray]
    write: Callable[[np.ndarray], list[np.ndarray]]


def rules(family: str, depths: Sequence[int]) -> tuple[Rule, ...]:
    """Every parameter of a Swin with these depths, once.

    Args:
      family: one of :data:`FAMILIES`.
      depths: blocks of each stage.

    Returns:
      The rules, in the order of the table and then of stage and block.
    """
    return tuple(
        rule
        for module, theirs in FAMILIES[family].items()
        for place in _places(module, depths)
        for rule in _module_rules(module, theirs, place)
    )


def branch_rules(family: str, depths: Sequence[int]) -> tuple[Rule, ...]:
    """The parameters of the task branches: a second fc1 and fc2 in each stage's last block.

    Args:
      family: one of :data:`FAMILIES`.
      depths: blocks of each stage.

    Returns:
      Rules whose own paths are ``stage{s}/{fc1, fc2}/{kernel, bias}``; the last stage has none.
    """
    return tuple(
        rule
        for s, depth in enumerate(depths[:-1])
        for layer in ("fc1", "fc2")
        for rule in _module_rules(
            "stage{s}/{layer}", TASK_BRANCH[family], {"s": s, "b": depth - 1, "layer": layer}
        )
    )


def _places(module: str, depths: Sequence[int]) -> list[dict[str, int]]:
    if "{b}" in module:
        return [{"s": s, "b": b} for s, depth in enumerate(depths) for b in range(depth)]
    if "{s}" in module:
        return [{"s": s, "n": s + 1} for s in range(len(depths) - 1)]
    return [{}]


def _module_rules(ours: str, theirs: Names, place: dict[str, object]) -> list[Rule]:
    kind = ours.rsplit("/", 1)[-1]
    path = ours.format(**place)
    parts = (theirs,) if isinstance(theirs, str) else theirs
    keys = tuple(part.format(**place) for part in parts)

    def leaf(name: str, their: str, read=_rows, write=_split_rows) -> Rule:
        count = len(keys)
        full = tuple(f"{key}.{their}" for key in keys)
        return Rule(f"{path}/{name}", full, read, lambda array: write(array, count))

    if kind == "bias_table":
        return [Rule(path, keys, _rows, lambda array: [array])]
    if kind.endswith(("norm", "norm1", "norm2")):
        return [leaf("scale", "weight"), leaf("bias", "bias")]
    if kind == "patch_embed_proj":
        return [leaf("kernel", "weight", _patches, _split_patches), leaf("bias", "bias")]
    kernel = leaf("kernel", "weight", _columns, _split_columns)
    return [kernel] if kind == "reduction" else [kernel, leaf("bias", "bias")]


# --- layouts: torch has (out, in) matrices and (out, in, row, column) filters -------------------


def _rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _split_rows(array: np.ndarray, count: int) -> list[np.ndarray]:
    return np.split(array, count)


def _columns(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return _rows(arrays).T


def _split_columns(array: np.ndarray, count: int) -> list[np.ndarray]:
    return np.split(array.T, count)


def _patches(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(C, 3, p, p) to (p * p * 3, C): a patch read row by row, colours innermost."""
    (array,) = arrays
    return array.transpose(2, 3, 1, 0).reshape(-1, len(array))


def _split_patches(array: np.ndarray, count: int) -> list[np.ndarray]:
    side = round((len(array) / 3) ** 0.5)
    return [array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)]
