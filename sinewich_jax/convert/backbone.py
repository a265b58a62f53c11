"""A Swin of another library as ours: every key accounted for, every shape checked.

    imported = convert.read_backbone("swin_tiny_patch4_window7_224.pth", preset="swin_t")
    path = convert.save_backbone("weights", imported)  # --config.backbone_weights=<path>

A key is one of four things: a parameter of ours, something that a pyramid without a classifier does
not need (its head, buffers), something unknown beside the network, which is reported, or something
unknown inside it, which is refused, because the network that it belongs to computes another
function.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

import sinewich_jax
from sinewich_jax.convert.family import Family, recognise
from sinewich_jax.convert.files import read_weights
from sinewich_jax.convert.geometry import (
    Shapes,
    check_geometry,
    in_words,
    parameter_shapes,
    preset_of,
    read_geometry,
)
from sinewich_jax.convert.names import FOREIGN_POSITION, NOT_NEEDED, Rule, branch_rules, rules
from sinewich_jax.convert.tables import centre_table, resize_table, window_of
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.swin import PRESETS, Swin
from sinewich_jax.storage import arrays

Smaller = Literal["resize", "centre"]

_FLOATS = ("bfloat16", "float16", "float32", "float64")
_BODY = r"(encoder\.)?layers\.\d.*|patch_embed\..*|embeddings\..*"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A backbone in this library's names.

    Attributes:
      params: path -> float32 array, every parameter of ``swin`` and no other.
      swin: the network, without adapters.
      family: whose names the file had.
      preset: the preset that has this geometry, or None.
      left_out: keys that a pyramid does not need.
      unmatched: keys that nothing is known about; they were not read.
      resized: position tables that came from another window, ``"PATH: window 12 to 7"``.
      source: name of the file.
      sha256: of its bytes; empty where there was no file.
    """

    params: dict[str, np.ndarray]
    swin: Swin
    family: Family
    preset: str | None
    left_out: tuple[str, ...]
    unmatched: tuple[str, ...]
    resized: tuple[str, ...]
    source: str = ""
    sha256: str = ""


def read_backbone(path: str | os.PathLike[str], preset: str | None = None) -> Imported:
    """Reads a Swin from a safetensors file or a torch zip archive.

    Args:
      path: the file, under official, timm or transformers names.
      preset: the backbone it shall become (its window too: position tables are resized); None takes
        the preset of the same geometry, and the file's own geometry where there is none.

    Raises:
      CheckpointError: the file cannot be read, or is not such a network.
      ConfigError: ``preset`` is none.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"unknown backbone {preset!r}{did_you_mean(preset, PRESETS)}")

    def choose(found: Swin) -> Swin:
        name = preset or preset_of(found)
        return found if name is None else Swin(**PRESETS[name])

    source = read_weights(path)
    made = _convert(source.tensors, str(path), choose, "resize")
    return dataclasses.replace(
        made,
        unmatched=(*made.unmatched, *source.others),
        source=source.name,
        sha256=source.sha256,
    )


def convert_state(
    tensors: Mapping[str, np.ndarray],
    where: str = "the state dict",
    *,
    swin: Swin | None = None,
    smaller: Smaller = "resize",
) -> Imported:
    """Turns a state dict of another library into ours.

    Args:
      tensors: name -> array, in torch layouts.
      where: names it in messages.
      swin: the network that it shall become; None makes one of the file's geometry.
      smaller: what becomes of the position table of a window smaller than that of ``swin``:
        ``resize`` as the authors do, or ``centre``, which is exact for the small maps that it was
        made for.

    Raises:
      CheckpointError: another architecture, another geometry, keys that are missing or of another
        shape, unknown keys inside the network, or numbers that are not finite.
    """
    plain = None if swin is None else swin.clone(lora_rank=0, task=None)
    return _convert(tensors, where, lambda found: plain or found, smaller)


def _convert(
    tensors: Mapping[str, np.ndarray],
    where: str,
    choose: Callable[[Swin], Swin],
    smaller: Smaller,
) -> Imported:
    """Reads every parameter of the network that ``choose`` makes of the file's geometry."""
    family = recognise(tensors, where)
    table = rules(family.name, family.depths)
    left_out, unmatched = _sorted_out(tensors, family, table, where)
    found = read_geometry(tensors, family, where)
    target = choose(found)
    check_geometry(found, target, where)
    shapes = parameter_shapes(target)
    params, resized = {}, []
    for rule in table:
        pieces = [tensors[family.prefix + key] for key in rule.theirs]
        if rule.ours.endswith("/bias_table"):
            small, (piece,) = window_of(pieces[0]), pieces
            if small != target.window:
                resized.append(f"{rule.ours}: window {small} to {target.window}")
            centred = smaller == "centre" and small < target.window
            pieces = [(centre_table if centred else resize_table)(_floats(piece), target.window)]
        _check_shapes(rule, pieces, shapes, family.prefix, where)
        params[rule.ours] = _as_ours(rule, pieces, family.prefix, where)
    return Imported(params, target, family, preset_of(target), left_out, unmatched, tuple(resized))


def save_backbone(directory: str | os.PathLike[str], imported: Imported) -> Path:
    """Writes ``DIR/<preset>.safetensors``, which the config key ``backbone_weights`` accepts.

    The header says where the weights came from, and what of it was not read.

    Args:
      directory: made when missing.
      imported: what :func:`read_backbone` returned.

    Raises:
      CheckpointError: no preset has this geometry, so no config could name it; or a full disk.
    """
    if imported.preset is None:
        raise CheckpointError(
            f"{imported.source or 'the state dict'} is a Swin of {in_words(imported.swin)}, the "
            f"geometry of no backbone; expected that of one of {', '.join(PRESETS)}"
        )
    path = Path(directory) / f"{imported.preset}.safetensors"
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(f"the folder {path.parent} is a file; choose another --out")
    metadata = {
        "source": imported.source,
        "sha256": imported.sha256,
        "family": imported.family.name,
        "preset": imported.preset,
        "left_out": json.dumps(imported.left_out),
        "unmatched": json.dumps(imported.unmatched),
        "resized": json.dumps(imported.resized),
        "made_by": f"sinewich_jax {sinewich_jax.__version__}",
    }
    arrays.save_safetensors(path, imported.params, metadata)
    return path


# --- accounting for every key -------------------------------------------------------------------


def _sorted_out(
    tensors: Mapping[str, np.ndarray], family: Family, table: Sequence[Rule], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that are not needed and those that are not known; refuses what does not fit."""
    wanted = {key for rule in table for key in rule.theirs}
    known = {key for rule in branch_rules(family.name, family.depths) for key in rule.theirs}
    left_out, unmatched = [], []
    for full in sorted(tensors):
        inside = full.startswith(family.prefix)
        key = full.removeprefix(family.prefix)
        if inside and key in wanted:
            continue
        if re.fullmatch(FOREIGN_POSITION, key):
            raise CheckpointError(
                f"{where} has absolute position embeddings ({full!r}), which our Swin does not "
                "have; expected a network with relative positions only"
            )
        if key in known or any(re.fullmatch(pattern, key) for pattern in NOT_NEEDED):
            left_out.append(full)
        elif inside and re.fullmatch(_BODY, key) and tensors[full].dtype.name in _FLOATS:
            raise CheckpointError(
                f"{where} has a parameter {full!r} inside the network that a Swin V1 does not "
                f"have; expected the weights of a plain {family.name} Swin"
            )
        else:
            unmatched.append(full)
    missing = sorted(family.prefix + key for key in wanted if family.prefix + key not in tensors)
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} parameters of an {family.name} Swin of depths "
            f"{family.depths}, the first is {missing[0]!r}; fetch or export it again"
        )
    return tuple(left_out), tuple(unmatched)


def _check_shapes(
    rule: Rule, pieces: Sequence[np.ndarray], shapes: Shapes, prefix: str, where: str
) -> None:
    # A broadcast zero has the shape and takes no memory.
    expected = rule.write(np.broadcast_to(np.float32(0), shapes[rule.ours]))
    for key, piece, like in zip(rule.theirs, pieces, expected, strict=True):
        if piece.shape != like.shape:
            raise CheckpointError(
                f"{where} has {prefix + key!r} of shape {piece.shape}, expected {like.shape}; it "
                "belongs to another network"
            )


def _floats(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return array.astype(np.float32) if array.dtype.name in _FLOATS else array


def _as_ours(rule: Rule, pieces: Sequence[np.ndarray], prefix: str, where: str) -> np.ndarray:
    for key, piece in zip(rule.theirs, pieces, strict=True):
        if piece.dtype.name not in _FLOATS:
            raise CheckpointError(
                f"{where} has {prefix + key!r} of type {piece.dtype}, expected floating-point "
                "weights; quantised files cannot be imported"
            )
        if not np.isfinite(_floats(piece)).all():
            raise CheckpointError(
                f"{where} has numbers in {prefix + key!r} that are not finite in float32; expected "
                "trained weights"
            )
    return np.ascontiguousarray(rule.read([_floats(piece) for piece in pieces]))
