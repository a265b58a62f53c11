"""A BERT, RoBERTa or MiniLM of a Hugging Face folder as ours.

    imported = convert.read_bert("all-MiniLM-L6-v2")     # config.json and model.safetensors in it
    hidden = imported.bert.apply({"params": imported.tree}, ids, mask)

As with backbones a key is a parameter of ours, something that an encoder has no use for (a pooler,
the heads of pretraining), something unknown beside the network, which is reported, or something
unknown inside it, which is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sinewich_jax.convert.files import read_weights
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.errors import CheckpointError, did_you_mean
from sinewich_jax.nn.bert import ACTIVATIONS, Bert

_EMBEDDINGS = {
    "embeddings/words": "embeddings.word_embeddings.weight",
    "embeddings/positions": "embeddings.position_embeddings.weight",
    "embeddings/types": "embeddings.token_type_embeddings.weight",
    "embeddings/norm/scale": "embeddings.LayerNorm.weight",
    "embeddings/norm/bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "output_norm": "output.LayerNorm",
}
"""Our module of a layer -> theirs."""

KINDS = ("bert", "roberta")
"""Values of ``model_type`` that are this network; those of RoBERTa count places otherwise."""

_NOT_NEEDED = (
    r"(bert|roberta)?\.?embeddings\.position_ids",
    r"((bert|roberta)\.)?pooler\..*",
    r"(cls|lm_head|classifier|qa_outputs)\..*",
)
_ANCHOR = _EMBEDDINGS["embeddings/words"]
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class ImportedBert:
    """An encoder in this library's names.

    Attributes:
      bert: the network.
      params: path -> float32 array, every parameter of ``bert`` and no other.
      left_out: keys that an encoder does not need.
      unmatched: keys beside the network that nothing is known about; they were not read.
      sha256: of the file of weights.
    """

    bert: Bert
    params: dict[str, np.ndarray]
    left_out: tuple[str, ...]
    unmatched: tuple[str, ...]
    sha256: str

    @property
    def tree(self) -> dict[str, Any]:
        """``params`` as ``bert.apply`` takes them."""
        return unflatten_paths(self.params)


def read_bert(folder: str | os.PathLike[str]) -> ImportedBert:
    """Reads an encoder.

    Args:
      folder: with ``config.json`` and ``model.safetensors`` as transformers writes them.

    Raises:
      CheckpointError: a file is missing or damaged, or the network is another one.
    """
    folder, bert = Path(folder), read_bert_config(folder)
    file = folder / "model.safetensors"
    source = read_weights(file)
    found = convert_bert(source.tensors, bert, str(file))
    return dataclasses.replace(found, sha256=source.sha256)


def read_bert_config(folder: str | os.PathLike[str]) -> Bert:
    """The encoder that a folder describes; its weights are not read.

    Args:
      folder: with ``config.json`` as transformers writes it.

    Raises:
      CheckpointError: the file is missing or damaged, or the network is another one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise CheckpointError(
            f"expected a folder with config.json and model.safetensors at {folder}, found {found}"
        )
    return bert_of(_read_config(folder / "config.json"), str(folder / "config.json"))


def bert_of(config: Mapping[str, Any], where: str = "the config") -> Bert:
    """The network that a Hugging Face configuration describes.

    Args:
      config: the content of ``config.json``.
      where: names it in messages.

    Raises:
      CheckpointError: an entry that is missing, or another network.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{where} has the model_type {kind!r}, expected one of {', '.join(KINDS)}"
        )
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        hint = did_you_mean(str(activation), ACTIVATIONS)
        raise CheckpointError(f"{where} has the hidden_act {activation!r}{hint}")
    places = config.get("position_embedding_type") or "absolute"
    if places != "absolute" or config.get("is_decoder"):
        found = "is_decoder true" if places == "absolute" else f"{places!r} positions"
        raise CheckpointError(f"{where} has {found}, expected an encoder with absolute positions")

    def number(key: str) -> int:
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{where} has {key} {value!r}, expected a whole number from 1")
        return value

    def rate(key: str, default: float, least: float = 0.0) -> float:
        value = config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1:
            raise CheckpointError(
                f"{where} has {key} {value!r}, expected a number from {least:g} to below 1"
            )
        return float(value)

    width, heads = number("hidden_size"), number("num_attention_heads")
    if width % heads:
        raise CheckpointError(
            f"{where} has hidden_size {width} and num_attention_heads {heads}, expected a divisor"
        )
    padding = config.get("pad_token_id")
    padding = 1 if padding is None else padding
    if kind == "roberta" and not (
        isinstance(padding, int) and 0 <= padding < number("max_position_embeddings") - 1
    ):
        raise CheckpointError(
            f"{where} has pad_token_id {padding!r}, expected a whole number from 0 and below the "
            "places that it counts from"
        )
    return Bert(
        vocabulary=number("vocab_size"),
        width=width,
        depth=number("num_hidden_layers"),
        heads=heads,
        hidden=number("intermediate_size"),
        positions=number("max_position_embeddings"),
        types=number("type_vocab_size"),
        activation=activation,
        epsilon=rate("layer_norm_eps", 1e-12),
        padding=padding if kind == "roberta" else None,
        dropout=rate("hidden_dropout_prob", 0.1),
        attention_dropout=rate("attention_probs_dropout_prob", 0.1),
    )


def convert_bert(
    tensors: Mapping[str, np.ndarray], bert: Bert, where: str = "the state dict"
) -> ImportedBert:
    """Turns a state dict of transformers into parameters of ours.

    Args:
      tensors: name -> array, in torch layouts; with or without a prefix such as ``bert.``.
      bert: the network that it shall become.
      where: names it in messages.

    Raises:
      CheckpointError: keys that are missing, unknown inside the network, of another shape or type,
        or numbers that are not finite.
    """
    tensors = {_renamed(key): array for key, array in tensors.items()}
    prefixes = [key.removesuffix(_ANCHOR) for key in tensors if key.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise CheckpointError(
            f"{where} holds {len(prefixes)} tables of words ({_ANCHOR!r}), expected one BERT"
        )
    (prefix,) = prefixes
    shapes = jax.eval_shape(
        lambda key: bert.init(key, np.zeros((1, 1), np.int32), np.ones((1, 1), np.int32)),
        jax.random.key(0),
    )["params"]
    params, used = {}, set()
    for ours, like in flatten_paths(shapes).items():
        key = prefix + _theirs(ours)
        used.add(key)
        if key not in tensors:
            raise CheckpointError(
                f"{where} lacks {key!r}, which a BERT of {bert.depth} layers has; fetch it again"
            )
        array = _checked(tensors[key], f"{where} has {key!r}")
        array = array.T if ours.endswith("/kernel") else array
        if array.shape != like.shape:
            shape = like.shape[::-1] if ours.endswith("/kernel") else like.shape
            raise CheckpointError(
                f"{where} has {key!r} of shape {tensors[key].shape}, expected {shape} by the config"
            )
        params[ours] = np.ascontiguousarray(array)
    left_out, unmatched = [], []
    for key in sorted(set(tensors) - used):
        if any(re.fullmatch(pattern, key) for pattern in _NOT_NEEDED):
            left_out.append(key)
        elif key.startswith((f"{prefix}embeddings.", f"{prefix}encoder.")):
            raise CheckpointError(
                f"{where} has a parameter {key!r} inside the network that a BERT of {bert.depth} "
                "layers does not have; expected plain weights that config.json belongs to"
            )
        else:
            unmatched.append(key)
    return ImportedBert(bert, params, tuple(left_out), tuple(unmatched), "")


def _theirs(ours: str) -> str:
    if ours in _EMBEDDINGS:
        return _EMBEDDINGS[ours]
    layer, module, leaf = ours.split("/")
    end = "bias" if leaf == "bias" else "weight"
    return f"encoder.layer.{layer.removeprefix('layer')}.{_LAYER[module]}.{end}"


def _renamed(key: str) -> str:
    """Names of the first releases in today's."""
    for old, new in _OLD.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def _checked(array: np.ndarray, words: str) -> np.ndarray:
    if array.dtype.name not in _FLOATS:
        raise CheckpointError(f"{words} of type {array.dtype}, expected floating-point weights")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{words} with numbers that are not finite in float32")
    return array


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"expected config.json of transformers at {path}, found nothing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object")
    return found
