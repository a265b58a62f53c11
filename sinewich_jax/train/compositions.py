"""Adapters as a run leaves them, in one file that knows its encoder, and as another composes them.

A run with adapters writes :data:`FILE` beside its results: the adapters of its tasks, their fusion
if it has one, and its heads. A run with ``method='fusion'`` reads the adapters of such files.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax import parallel, storage
from sinewich_jax.config import AdapterConfig
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.bert import Bert
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.fusion import PLACEMENTS
from sinewich_jax.nn.text import ENCODER, TextModel
from sinewich_jax.train import replace
from sinewich_jax.train import workdir as workdirs

FILE = "composition.safetensors"
RECORD = "sources.json"

# Where the parts of a composition lie in a model.
_PLACES = {"adapters": "backbone/adapters_", "fusion": "backbone/fusion_", "heads": "heads/"}
# What adapters of several runs must share to stand on one axis.
_SHARED = ("hidden", "placement", "dropped")


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_head(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and isinstance(value[0], str) and _is_size(value[1])


def _is_list(is_one: Callable[[Any], bool], least: int = 1) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and len(v) >= least and all(map(is_one, v))


# What a run says of its adapters: what each fact is, for people and as a check.
_FACTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "hidden": ("a width", _is_size),
    "placement": (f"one of {', '.join(PLACEMENTS)}", lambda v: v in tuple(PLACEMENTS)),
    "dropped": ("a list of layers", _is_list(lambda n: type(n) is int and n >= 0, least=0)),
    "names": ("a list of names", _is_list(lambda name: isinstance(name, str))),
    "fused": ("true or false", lambda v: isinstance(v, bool)),
    "heads": ("a list of pairs of task and width", _is_list(_is_head)),
}


@dataclasses.dataclass(frozen=True)
class Sources:
    """Adapters of runs, to be composed.

    Attributes:
      paths: of their files.
      facts: what each says about itself.
      marks: the sha256 of each, as it was when the run that composes them began.
    """

    paths: tuple[Path, ...]
    facts: tuple[Mapping[str, Any], ...]
    marks: tuple[str, ...]

    @property
    def changed(self) -> Path | None:
        """The first file that is gone or another one by now; None while all are as they were."""
        pairs = zip(self.paths, self.marks, strict=True)
        return next((path for path, mark in pairs if _mark(path) != mark), None)

    def begin(self, workdir: Path) -> None:
        """Records what a run composes: once it has begun it needs the files no more.

        Raises:
          CheckpointError: a file is gone or another one, and this run has no checkpoint yet.
        """
        if (path := self.changed) is not None:
            raise CheckpointError(
                f"{path} is not what it was when the run in {workdir} began, and that run has no "
                "checkpoint; begin again in another work directory"
            )
        if parallel.is_main_process():
            content = {"facts": list(self.facts), "sha256": list(self.marks)}
            storage.write_json(workdir / RECORD, content)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters, file by file."""
        return tuple(name for facts in self.facts for name in facts["names"])

    @property
    def tokenizers(self) -> dict[str, str]:
        """By file, the mark of the tokenizer of its run; earlier versions did not say it."""
        pairs = zip(self.paths, self.facts, strict=True)
        return {str(path): facts["tokenizer"] for path, facts in pairs if "tokenizer" in facts}

    @property
    def shape(self) -> dict[str, Any]:
        """What a model that has room for them must say."""
        first = self.facts[0]
        return {
            "names": self.names,
            "hidden": first["hidden"],
            "placement": first["placement"],
            "dropped": tuple(first["dropped"]),
        }

    def check(self, asked: AdapterConfig) -> None:
        """Refuses a shape that was asked for, and that the adapters do not have.

        Args:
          asked: of the config; what is left at its default asks for nothing.

        Raises:
          ConfigError: names the key.
        """
        for key in _SHARED:
            wanted, found = getattr(asked, key), self.shape[key]
            if wanted not in (getattr(AdapterConfig(), key), found):
                raise ConfigError(
                    f"config key 'adapters.{key}' is {wanted!r}, and the adapters of "
                    f"{self.paths[0]} have {found!r}; leave it out"
                )

    def read(self, bert: Bert, encoder: Mapping[str, Any]) -> dict[str, Any]:
        """The adapters by path in the model, stacked in the order of :attr:`names`.

        Args:
          bert: the encoder that they are to be used with.
          encoder: its parameters by path.

        Raises:
          CheckpointError: adapters of another encoder, or of another width.
        """
        base = trees.unflatten_paths(dict(encoder))
        read = [
            storage.load_composition(path, _expected(bert, facts), base).parts["adapters"]
            for path, facts in zip(self.paths, self.facts, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *read)
        return {
            f"{_PLACES['adapters']}{path}": leaf
            for path, leaf in trees.flatten_paths(stacked).items()
        }


def find(runs: Sequence[str], begun: Path | None = None) -> Sources:
    """The adapters that runs have left; they are not read yet.

    Args:
      runs: work directories, or composition files themselves.
      begun: the work directory of a run that composes them and may have begun already; what it has
        recorded then counts, whatever has become of the files.

    Raises:
      CheckpointError: nothing there, or no composition that a run has left.
      ConfigError: adapters of different shapes, or two of one name.
    """
    paths = tuple(path / FILE if path.is_dir() else path for path in map(Path, runs))
    if begun is not None and (begun / RECORD).is_file():
        content = workdirs.read_json(begun / RECORD)
        return Sources(paths, tuple(content["facts"]), tuple(content["sha256"]))
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"there is no {path}, expected what a run with method='adapters' leaves when it "
                "is complete; train it to its end first"
            )
    facts, marks = map(storage.composition_facts, paths), map(_mark, paths)
    found = Sources(paths, tuple(facts), tuple(map(str, marks)))
    for path, facts in zip(paths, found.facts, strict=True):
        _check_facts(path, facts)
        for key in _SHARED:
            if facts[key] != found.facts[0][key]:
                raise ConfigError(
                    f"the adapters of {path} have {key} {facts[key]!r}, those of {paths[0]} "
                    f"{found.facts[0][key]!r}; expected the same, to be composed"
                )
    twice = sorted({name for name in found.names if found.names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"config key 'adapters.sources' names runs that both have an adapter {twice[0]!r}; "
            "expected each name once"
        )
    return found


def save(
    workdir: Path, model: TextModel, state: Any, constants: Mapping[str, Any], tokenizer: str
) -> None:
    """Writes what a run has trained beside its encoder.

    Args:
      workdir: gets :data:`FILE`.
      model: of the run.
      state: the trained state.
      constants: the frozen tree.
      tokenizer: mark of the tokenizer whose ids the encoder read.
    """
    flat = replace.parameters(state, constants)
    if not parallel.is_main_process():
        return
    facts = {
        "names": list(model.names),
        "hidden": model.hidden,
        "placement": model.placement,
        "dropped": list(model.dropped),
        "fused": model.fused,
        "heads": [list(head) for head in model.heads],
        "tokenizer": tokenizer,
    }
    encoder = trees.unflatten_paths(encoder_of(flat))
    storage.save_composition(workdir / FILE, _parts(flat), encoder, facts)


def load(
    path: str | Path, bert: Bert, encoder: Mapping[str, Any]
) -> tuple[TextModel, dict[str, Any]]:
    """A whole composition as a model that answers.

    Args:
      path: a composition file, or the work directory of a run that has left one.
      bert: the encoder beside which it was trained.
      encoder: its parameters by path, as ``convert.read_bert(FOLDER).params`` holds them.

    Returns:
      The model and its variables, for ``model.apply``.

    Raises:
      CheckpointError: no composition, another encoder, or a leaf that is missing, left over or of
        another shape; the leaf is named.
    """
    found = find([str(path)])
    file, facts = found.paths[0], found.facts[0]
    base = trees.unflatten_paths(dict(encoder))
    parts = storage.load_composition(file, _expected(bert, facts), base).parts
    flat = {
        f"{_PLACES[name]}{inner}": leaf
        for name, part in parts.items()
        for inner, leaf in trees.flatten_paths(part).items()
    }
    flat |= {f"{ENCODER}{inner}": leaf for inner, leaf in encoder.items()}
    params = jax.tree.map(jnp.asarray, trees.unflatten_paths(flat))
    return _model(bert, facts), {"params": params}


def select(path: str | Path, names: Sequence[str], out: str | Path) -> None:
    """Writes a composition with some of its adapters: the others are gone.

    With the names of :func:`sinewich_jax.train.attention.most_attended` it is pruned of the
    adapters that its fusion hardly uses; nothing else of it changes. Of adapters that are not
    fused each belongs to a task, whose head stays and goes with it.

    Args:
      path: a composition file, or the work directory of a run that has left one.
      names: of the adapters that stay, in their new order.
      out: the new file.

    Raises:
      CheckpointError: no composition.
      ConfigError: no name, one twice, or one that is not there (the nearest is offered).
    """
    found = find([str(path)])
    file, facts = found.paths[0], found.facts[0]
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ConfigError(f"the adapters that stay are {names!r}, expected names, each once")
    for name in names:
        if name not in facts["names"]:
            raise ConfigError(f"{file} has no adapter {name!r}{did_you_mean(name, facts['names'])}")
    rows = np.array([facts["names"].index(name) for name in names])

    def change(parts: dict[str, Any], facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        kept = jax.tree.map(lambda leaf: leaf[rows], parts["adapters"])
        parts, facts = {**parts, "adapters": kept}, {**facts, "names": list(names)}
        if not facts["fused"]:
            parts["heads"] = {name: parts["heads"][name] for name in names}
            facts["heads"] = [facts["heads"][row] for row in rows]
        return parts, facts

    storage.rewrite_composition(file, out, change)


def _check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses a file that does not say what its parts are, or says what cannot be."""
    for key, (expected, is_right) in _FACTS.items():
        if key not in facts:
            raise CheckpointError(
                f"{path} does not say the {key!r} of its adapters, expected the {FILE} of a run "
                "with method='adapters'"
            )
        if not is_right(facts[key]):
            raise CheckpointError(
                f"{path} says that the {key!r} of its adapters are {facts[key]!r}, expected "
                f"{expected}"
            )
    tasks = [task for task, _ in facts["heads"]]
    if not facts["fused"] and tasks != facts["names"]:
        raise CheckpointError(
            f"{path} has the adapters {facts['names']} and the heads {tasks}, expected an adapter "
            "for each head, in the same order, where none are fused"
        )


def _mark(path: Path) -> str | None:
    """The sha256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encoder_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder among parameters by path, named as the encoder itself names them."""
    return {
        path.removeprefix(ENCODER): leaf for path, leaf in flat.items() if path.startswith(ENCODER)
    }


def _parts(flat: Mapping[str, Any]) -> dict[str, Any]:
    parts = {
        name: trees.unflatten_paths(
            {path.removeprefix(at): leaf for path, leaf in flat.items() if path.startswith(at)}
        )
        for name, at in _PLACES.items()
    }
    return {name: part for name, part in parts.items() if part}


def _expected(bert: Bert, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a file with these facts must hold, as shapes."""
    model = _model(bert, facts)
    ids = jnp.zeros((1, len(model.heads), 1), jnp.int32)
    text = {"ids": ids, "mask": ids == 0, "segments": ids}
    shapes = jax.eval_shape(model.init, jax.random.key(0), text)
    return _parts(trees.flatten_paths(shapes["params"]))


def _model(bert: Bert, facts: Mapping[str, Any]) -> TextModel:
    heads = tuple((task, outputs) for task, outputs in facts["heads"])
    return TextModel(
        bert,
        heads,
        ClockSpec(len(heads)),
        tuple(facts["names"]),
        facts["hidden"],
        facts["placement"],
        facts["fused"],
        tuple(facts["dropped"]),
    )
