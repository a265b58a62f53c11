"""From a config to an experiment on text tasks: the encoder, what adapts it, its data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sinewich_jax import data, tasks
from sinewich_jax.config import Config, differences
from sinewich_jax.core import adapters, trees
from sinewich_jax.core.weighting import make as make_weighting
from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.nn.bert import LinearUpdate
from sinewich_jax.nn.text import ENCODER, OWN_ROWS, TextModel, path_rules
from sinewich_jax.train import (
    attention,
    compositions,
    encoders,
    merge_item,
    networks,
    text_record,
)
from sinewich_jax.train.experiment import FULL, Experiment, make_task

METHODS = (
    *("sinewich", "lora", "lora_gain", "lora_split", "lora_task", "sine_lora"),
    *("adapters", "fusion", "decoder_only", "full_ft", "single_task", "scratch"),
)
"""The values of the config key ``method`` that texts know."""

# Keys about something that only images, or their networks, have; by default they ask for nothing.
_OF_IMAGES = (
    *("image_size", "eval_resolution", "depth_unit", "depth_target", "allow_missing", "augment"),
    *("channels", "loss_kinds", "kernel_size", "conv_mode", "tokens", "drop_path", "features"),
    *("decoder_channels", "decoder_hidden", "decoder_position", "decoder_base", "task_axis"),
    *("add_task", "base_run"),
)
_GROUPS = ("norms", "all")

# As of a Swin: the two wide kernels are cut so that a layer needs one reduction.
SHARDING_RULES = (
    (r"backbone/encoder/layer\d+/wide/kernel", PartitionSpec(None, "model")),
    (r"backbone/encoder/layer\d+/wide/bias", PartitionSpec("model")),
    (r"backbone/encoder/layer\d+/narrow/kernel", PartitionSpec("model", None)),
    (r".*", PartitionSpec()),
)


@dataclasses.dataclass(frozen=True)
class TextExperiment(Experiment):
    """An experiment on text tasks.

    Attributes:
      encoder: where weights and tokenizer come from.
      composed: for stage two of AdapterFusion, the adapters that are composed.
      texts: by part (``"train"``, ``"eval"``), texts in place of the data set of the config.
      record: what the run remembers of its start; None before it.
    """

    inputs: ClassVar[str] = "text"
    calibration_examples: ClassVar[int] = 2000

    model: TextModel
    encoder: encoders.Encoder = dataclasses.field(kw_only=True)
    composed: compositions.Sources | None = dataclasses.field(default=None, kw_only=True)
    texts: dict[str, data.Texts] = dataclasses.field(
        default_factory=dict, compare=False, kw_only=True
    )
    record: text_record.TextRecord | None = dataclasses.field(
        default=None, compare=False, kw_only=True
    )

    @property
    def augment(self) -> None:
        """Texts are taken as they are."""
        return None

    @functools.cached_property
    def tokenizer(self) -> data.Tokenizer:
        """The tokenizer of the encoder, read once.

        Raises:
          DataError: it has other tokens than the one that the run, or adapters that it composes,
            began with.
        """
        found = self.encoder.tokenizer()
        marks = {} if self.composed is None else self.composed.tokenizers
        if self.record is not None:
            marks = {**marks, "this run": self.record.tokenizer}
        for who, mark in marks.items():
            if mark != found.mark:
                raise DataError(
                    f"the tokenizer of {found.name} has other tokens, or other ids for them, than "
                    f"the one that {who} began with; put that one back"
                )
        return found

    @functools.cached_property
    def train_source(self) -> data.TextSource:
        """The training texts; read and encoded on first use."""
        texts = self._texts("train")
        if self.config.train_size is not None:
            texts = texts.sample(self.config.train_size, self.config.seed)
        return self._encoded(texts, repeat=True)

    @functools.cached_property
    def eval_source(self) -> data.TextSource:
        """The evaluation texts."""
        texts = self._texts("eval")
        if self.config.eval_size is not None:
            texts = texts.first(self.config.eval_size)
        return self._encoded(texts, repeat=False)

    def _texts(self, part: str) -> data.Texts:
        config = self.config
        if part in self.texts:
            return self.texts[part].select(config.tasks)
        split = "train"
        if part == "eval":
            split = config.eval_split or data.default_eval_split(config.data)
        return data.load_texts(config.data, split, data_dir=config.data_dir, tasks=config.tasks)

    def _encoded(self, texts: data.Texts, repeat: bool) -> data.TextSource:
        for task in self.tasks:
            if (classes := texts.task(task.name).channels) != task.channels:
                raise ConfigError(
                    f"the texts of {task.name!r} have {classes} classes, expected the "
                    f"{task.channels} of the task; label them so, or register a task of your own "
                    "for them"
                )
        return data.TextSource(texts, self.tokenizer, self.config.text.max_tokens, repeat)

    def normalise(self, text: Any) -> Any:
        """Texts need no normalisation."""
        return text

    def _blank(self) -> dict[str, jax.Array]:
        ids = jnp.zeros((1, len(self.tasks), 1), jnp.int32)
        return {"ids": ids, "mask": ids == 0, "segments": ids}

    def calibrated(self, init: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Fresh variables with pretrained weights, and heads that start at the mean label.

        Weights are put in outside of ``init``: traced, they would become constants of a program.
        """

        def filled() -> dict[str, Any]:
            variables = init()
            flat = trees.flatten_paths(variables["params"])
            encoder = self.encoder.weights()
            if encoder is not None:
                found = {f"{ENCODER}{path}": leaf for path, leaf in encoder.items()}
                flat.update(networks.matched(found, flat))
            # A run that has begun holds its adapters itself, whatever has become of the files.
            if self.composed is not None and self.composed.changed is None:
                flat.update(self.composed.read(self.encoder.bert, compositions.encoder_of(flat)))
            return {**variables, "params": trees.unflatten_paths(flat)}

        return super().calibrated(filled)

    def _pretrained(self) -> None:
        return None

    def _output_bias(self, task: str) -> str:
        return f"heads/{task}/bias"

    def mergeable(self, path: str) -> bool:
        """Whether runs of other tasks have the parameter ``path`` too, so that it can be merged."""
        return merge_item.is_mergeable(path, own_rows(self.model))

    def begin(self, workdir: Path) -> None:
        """Records which adapters are composed, the names of classes and the tokenizer."""
        if self.composed is not None:
            self.composed.begin(workdir)
        names = {
            task: tuple(given) for task, given in self.train_source.class_names.items() if given
        }
        text_record.write(workdir, text_record.TextRecord(names, self.tokenizer.mark))

    def shown(self, source: data.TextSource, index: int) -> dict[str, Any]:
        """The words of an example, by task."""
        return {"words": {task.name: source.words(index, task.name) for task in self.tasks}}

    def leave(self, workdir: Path, evaluator: Any, state: Any, constants: Any) -> None:
        """Writes the trained adapters as a composition, and what their fusion attends to."""
        if not self.model.names:
            return
        compositions.save(workdir, self.model, state, constants, self.tokenizer.mark)
        if self.model.fused:
            attention.leave(workdir, evaluator, state, constants)


def is_text(config: Config) -> bool:
    """Whether the tasks of a config read texts.

    Raises:
      ConfigError: an unknown task, or texts and images in one run.
    """
    texts = [name for name in config.tasks if isinstance(tasks.make(name), tasks.TextTask)]
    images = [name for name in config.tasks if name not in texts]
    if texts and images:
        raise ConfigError(
            f"config key 'tasks' names {images[0]!r}, which reads images, and {texts[0]!r}, which "
            "reads texts; expected one kind in a run"
        )
    return not images


def experiment(
    config: Config,
    train_texts: data.Texts | None = None,
    eval_texts: data.Texts | None = None,
    begun: Path | None = None,
) -> TextExperiment:
    """Builds what ``config`` names; neither texts nor weights are read yet.

    Args:
      config: the run.
      train_texts: training texts in place of those of the data set that ``config`` names.
      eval_texts: evaluation texts in place of its; ``data`` is then a name of your own.
      begun: the work directory of the run, which may have begun.

    Raises:
      ConfigError: words or sizes that do not fit together.
      CheckpointError: adapters to compose that are not there.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"the config is a {type(config).__name__}, expected a Config, as "
            "sinewich_jax.config.from_dict or from_config_dict makes one"
        )
    _refuse(config)
    given = {"train": train_texts, "eval": eval_texts}
    record = text_record.read(begun)
    names = {} if record is None else record.class_names
    for texts in given.values():
        if texts is not None:
            names = {**names, **_class_names(texts)}
    made = tasks.with_class_names([make_task(config, name) for name in config.tasks], names)
    encoder = encoders.encoder(config)
    if config.text.max_tokens > encoder.bert.longest:
        raise ConfigError(
            f"config key 'text.max_tokens' is {config.text.max_tokens}, expected at most "
            f"{encoder.bert.longest}, the places of the encoder {encoder.name}"
        )
    _check_dropped(config, encoder)
    composed = None
    if config.method == "fusion":
        composed = compositions.find(config.adapters.sources, begun)
        composed.check(config.adapters)
    groups = ("all",) if config.method in FULL else config.trainable
    weighting = make_weighting(config.weighting, len(made), **dict(config.weighting_options))
    if weighting.needs_gram and config.method == "decoder_only" and not groups:
        raise ConfigError(
            f"config key 'weighting' is {config.weighting!r}, which compares gradients of what "
            "tasks share, and text tasks share nothing that method 'decoder_only' trains; expected "
            "one of losses, 'fixed' say"
        )
    _check_given(config, eval_texts)
    return TextExperiment(
        config,
        model(config, made, encoder, composed),
        made,
        path_rules(groups, fused=composed is not None),
        weighting,
        SHARDING_RULES,
        (r"heads/.*",),
        penalty=None if composed is None else functools.partial(penalty, config),
        encoder=encoder,
        composed=composed,
        texts={part: texts for part, texts in given.items() if texts is not None},
        record=record,
    )


def model(
    config: Config,
    made: Sequence[tasks.Task],
    encoder: encoders.Encoder,
    composed: compositions.Sources | None,
) -> TextModel:
    """The model of a config for tasks that are made already."""
    spec = networks.kernel_part(config, len(made))
    update = LinearUpdate(
        spec,
        rank=config.rank if spec is not None else 0,
        scale=config.scale,
        frequency=spec.frequency if config.method == "sine_lora" else None,
        dropout=config.adapter_dropout,
    )
    rates = {}
    if config.text.dropout is not None:
        rates = {"dropout": config.text.dropout, "attention_dropout": config.text.dropout}
    bert = encoder.bert.clone(update=update, dtype=jnp.dtype(config.dtype), **rates)
    clock = networks.clock_part(config, len(made))
    heads = tuple((task.name, task.channels) for task in made)
    if composed is not None:
        return TextModel(bert, heads, clock, **composed.shape, fused=True)
    if config.method != "adapters":
        return TextModel(bert, heads, clock)
    own = config.adapters
    return TextModel(
        bert, heads, clock, config.tasks, own.hidden, own.placement, dropped=own.dropped
    )


def own_rows(network: TextModel) -> tuple[str, ...]:
    """Patterns of the parameters with one row a task; what one task owns, its head apart."""
    rows = [*OWN_ROWS, rf"{ENCODER}.*/task/gain"]
    task = network.bert.update.task
    if task is not None and task.copies is not None:
        rows.append(rf"{ENCODER}.*/task/(up|down)")
    return tuple(rows)


def penalty(config: Config, params: Any) -> jax.Array:
    """What keeps the value kernels of a fusion near the identity, summed over the layers."""
    values = [
        leaf for path, leaf in trees.flatten_paths(params).items() if path.endswith("/value_kernel")
    ]
    return adapters.value_penalty(jnp.stack(values), config.adapters.value_penalty)


def _class_names(texts: data.Texts) -> dict[str, tuple[str, ...]]:
    named = {name: texts.task(name).class_names for name in texts}
    return {name: found for name, found in named.items() if found is not None}


def _check_dropped(config: Config, encoder: encoders.Encoder) -> None:
    """Adapters that are left out of layers must be left in some."""
    depth, dropped = encoder.bert.depth, config.adapters.dropped
    if any(layer >= depth for layer in dropped) or len(set(dropped)) == depth:
        raise ConfigError(
            f"config key 'adapters.dropped' is {dropped}, expected some of the layers 0 to "
            f"{depth - 1} of the encoder {encoder.name}, and not all"
        )


def _refuse(config: Config) -> None:
    """What texts know nothing of, and would read past in silence."""
    if config.method not in METHODS:
        raise ConfigError(
            f"config key 'method' is {config.method!r}, which is defined on images; expected one "
            f"of {', '.join(METHODS)}"
        )
    for key, (silent, found) in differences(Config(), config).items():
        if key.split(".")[0] in _OF_IMAGES:
            raise ConfigError(
                f"config key {key!r} is {found!r}, which only images have; found the text task "
                f"{config.tasks[0]!r}, expected {silent!r}"
            )
    if config.method == "fusion" and config.trainable:
        raise ConfigError(
            f"config key 'trainable' is {config.trainable!r}, but method 'fusion' leaves encoder "
            "and adapters as they are; expected ()"
        )
    for group in config.trainable:
        if group not in _GROUPS:
            raise ConfigError(
                f"config key 'trainable' is {group!r}, which text encoders do not have; expected "
                f"some of {', '.join(_GROUPS)}"
            )
    if config.method == "single_task" and len(config.tasks) > 1:
        raise ConfigError(
            f"method 'single_task' trains one network a task, found {len(config.tasks)} tasks in "
            "one run; train with train.py, which makes a run of each, or name one task"
        )
    if config.method == "fusion" and len(config.tasks) > 1:
        raise ConfigError(
            f"method 'fusion' composes adapters for one target task, found {len(config.tasks)}; "
            "set the config key 'tasks' to one"
        )
    if (config.method == "fusion") != bool(config.adapters.sources):
        found = "set" if config.adapters.sources else "empty"
        raise ConfigError(
            f"config key 'adapters.sources' is {found} and 'method' is {config.method!r}; expected "
            "work directories of runs with method='adapters' for method='fusion' alone"
        )


def _check_given(config: Config, eval_texts: data.Texts | None) -> None:
    """Scores on texts of one's own must not pass for those of a data set."""
    if eval_texts is not None and config.data in data.names():
        raise ConfigError(
            f"evaluation texts of your own are given and the config key 'data' is {config.data!r}, "
            "a data set whose name their scores would bear; choose a name of your own"
        )
