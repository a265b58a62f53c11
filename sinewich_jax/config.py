"""One run as a frozen dataclass: every key, its type, its default and its meaning.

Keys are flat, because commands spell them (``--config.rank=64``); only the mesh, the
augmentation, texts and adapters are nested (``--config.mesh.model=2``).  :func:`from_dict` is the
one way in: it rejects unknown keys with the nearest name, values of another type, and values
outside the stated choices or bounds.  Neither ``absl`` nor ``ml_collections`` is known here.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from sinewich_jax.errors import ConfigError, did_you_mean

Method = Literal[
    "sinewich",
    "lora",
    "lora_gain",
    "lora_split",
    "lora_task",
    "sine_lora",
    "mtlora",
    "mtlora_plus",
    "tadformer",
    "decoder_only",
    "full_ft",
    "single_task",
    "scratch",
    "adapters",
    "fusion",
]
Group = Literal["norms", "patch_embed", "bias_table", "merging", "all"]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each mesh axis; ``-1`` takes all that are left.

    Attributes:
      data: shards of the batch.
      task: shards of the task axis; only 1 so far, since no array is cut along it.
      model: shards of wide kernels.
    """

    data: int = -1
    task: int = 1
    model: int = 1


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to an example, jointly to its image and its labels.

    Attributes:
      flip: mirror left to right with probability one half.
      scale: zoom factors, drawn uniformly between the two.
      zooms: zoom factors, one of which is drawn, in place of ``scale``.
      rotate: largest turn in degrees; drawn uniformly from ``[-rotate, rotate]``.
      crop: height and width cut out after scaling, or None for the whole frame.
      zero_border: pixels from outside the frame count as class 0 instead of invalid.
      method: how image and normals are resampled.
      brightness: largest shift of the image as a fraction of 255.
      contrast: largest relative change of the image's contrast.
    """

    flip: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    crop: tuple[int, int] | None = None
    zero_border: bool = False
    method: Literal["linear", "cubic"] = "linear"
    brightness: float = 0.0
    contrast: float = 0.0
    zooms: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How texts are read; only with text tasks.

    Attributes:
      max_tokens: tokens of an example, both texts of a pair and the special ones among them; longer
        ones are cut, and the run's results say how many. Where all are shorter, so are the arrays.
      dropout: rate on what the encoder's sub-layers give and on attention; None keeps the
        encoder's own.
    """

    max_tokens: int = 64
    dropout: float | None = None


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Bottleneck adapters and their fusion (methods ``adapters`` and ``fusion``).

    Attributes:
      placement: after the feed-forward map and before its norm (``"pfeiffer"``), there and behind
        attention (``"houlsby"``), or beside the feed-forward map (``"parallel"``).
      hidden: width of the bottleneck.
      dropped: layers without adapters (AdapterDrop).
      sources: for ``fusion``: work directories of ``adapters`` runs whose adapters are composed.
      value_penalty: weight of ``|I - V|_F^2``, summed over the layers, in the loss of ``fusion``.
    """

    placement: Literal["pfeiffer", "houlsby", "parallel"] = "pfeiffer"
    hidden: int = 48
    dropped: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    value_penalty: float = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      data: name of the data set.
      data_dir: folder of the data set; None lets the data set look where it looks by default.
      image_size: height and width; None keeps the data set's own.
      train_size: number of training examples, for texts of each task and drawn by the seed; None
        takes all.
      eval_split: split that is scored; None takes the data set's ``val`` (or ``test`` without one).
      eval_resolution: score at the ``"train"`` resolution, labels resized to ``image_size``, or at
        the ``"original"`` one, predictions resized to the size that each label came in.
      eval_size: number of evaluation examples; None takes all.
      tasks: task names, in the order of every task axis.
      channels: pairs of task and head width, where a data set differs from the task's default
        (ccp has 16 classes); checked against the data.
      depth_unit: unit of the depth files of a folder or of ``nyud_mt``; None lets the set decide (a
        folder: metres in ``.npy``, millimetres in PNG).
      depth_target: what depth means where a set offers a choice (``cityscapes_mt``).
      allow_missing: images may lack the label of a task, which then counts nowhere.
      loss_weights: pairs of task and weight; a task not named keeps its own default.
      weighting: how the losses become one step, a name of ``core.weighting``. Losses come to it
        times their ``loss_weights``, which bring them to one scale; ``"fixed"`` adds them up as
        they are, ``"equal"`` adds the plain losses.
      weighting_options: pairs of option and value of that weighting, ``c`` of ``cagrad`` say.
      loss_kinds: pairs of task and the kind of its loss, for tasks with a choice (``depth``: ``l1``
        or ``l2``; ``normals``: ``l1`` or ``cosine``).
      backbone: name of the backbone.
      backbone_weights: ``"shipped"``, ``"random"``, or a weight file; for texts a folder of
        Hugging Face, or the work directory of a run whose encoder is taken over.
      method: what adapts the backbone.
      start: ``"anchored"`` (modulation of order one at once) or ``"zero"`` (as published).
      rank: adapter rank; twelve divides by six tasks, as ``lora_split`` needs.
      task_rank: rank of the tasks' own updates in ``mtlora``.
      filter: taps of the tasks' filters in ``tadformer``: ``"dynamic"`` (the paper) or ``"static"``
        (the authors' release).
      scale: multiplier of every adapter's output.
      modulation: modulation index ``mean(omega) * std(kernel)`` at an anchored start.
      kernel_size: spatial size k of the task kernels.
      conv_mode: the k x k kernel W between the factors works ``"depthwise"`` or is ``"full"``.
      kernel_base: one kernel that all tasks modulate, or an independent one for each.
      lowpass: smooth modulated kernels over their channels (7 taps, sigma 1), the decoder's too.
      tokens: task tokens only ``"condition"`` the clock, or join the windows of a Swin (``"vpt"``).
      clock_hidden: width of a hidden layer in the clock; None for a single layer.
      clock_offsets: where each task's frequency starts, ``s (tanh(o) + c)``; () spreads them.
      add_task: name of a task that a trained run (``base_run``) learns on top, see
        :mod:`sinewich_jax.train.add_task`.
      base_run: work directory of that run.
      clock: frequencies from task tokens, as free scalars, or constant.
      frequency_scope: one set of frequencies, one a stage (of a text encoder: a layer), or one for
        each modulated linear map (``"layer"``).
      features: the decoder reads each stage of a Swin before (``"stage"``) or after patch merging
        (``"merged"``, as MTLoRA does).
      decoder_channels: projection width of each of the four scales.
      decoder_hidden: width of the shared decoder convolution; None is four times that of its
        input.
      decoder_position: give the decoder the row and column of each pixel.
      decoder_base: how the decoder's first convolution is shared between the tasks.
      task_axis: ``"vmap"`` is faster, ``"map"`` keeps one task's activations at a time.
      dtype: compute dtype; parameters stay float32.
      drop_path: rate of stochastic depth at the last block.
      adapter_dropout: rate of dropout on the inputs of the adapters that tasks share (of MTLoRA's
        tasks too where they read the same input).
      trainable: groups of backbone parameters trained besides adapters and decoder.
      output_bias: ``"labels"`` starts the bias of each head at the mean label of some training
        examples (class log-frequencies, mean depth), ``"zero"`` at zero.
      learning_rate: peak rate.
      adapter_lr_mult: factor on it for the shared LoRA factors.
      task_lr_mult: factor on it for the factors of the task kernels.
      decoder_lr_mult: factor on it for the decoder, whose start is random.
      warmup_steps: steps of linear warm-up before the cosine.
      weight_decay: decoupled weight decay of kernels.
      clip_norm: largest global gradient norm.
      steps: optimizer steps.
      batch_size: examples a step, over all devices.
      log_every: steps between two lines of ``metrics.jsonl``.
      eval_every: steps between evaluations; 0 evaluates at the end only.
      checkpoint_every: steps between checkpoints; 0 saves at the end only.
      max_to_keep: checkpoints kept.
      merge_stats_every: steps between two recordings of the curvature that merging reads (item
        ``merge`` of a checkpoint); 0 keeps none. The weights do not depend on it.
      seed: seeds parameters, batches, augmentation and dropout.
      workers: threads that prepare batches.
      mesh: devices along each mesh axis.
      augment: joint augmentation of the training examples.
      text: how texts are read.
      adapters: bottleneck adapters and their fusion.
    """

    data: str = "scenes"
    data_dir: str | None = None
    image_size: tuple[int, int] | None = None
    train_size: int | None = None
    eval_split: str | None = None
    eval_resolution: Literal["train", "original"] = "train"
    eval_size: int | None = None
    tasks: tuple[str, ...] = ("semseg", "human_parts", "saliency", "normals", "depth", "edge")
    channels: tuple[tuple[str, int], ...] = ()
    add_task: str | None = None
    base_run: str | None = None
    depth_unit: str | None = None
    depth_target: str | None = None
    allow_missing: bool = False
    loss_weights: tuple[tuple[str, float], ...] = ()
    weighting: str = "fixed"
    weighting_options: tuple[tuple[str, float], ...] = ()
    loss_kinds: tuple[tuple[str, str], ...] = ()

    backbone: str = "tiny"
    backbone_weights: str = "shipped"
    method: Method = "sinewich"
    start: Literal["anchored", "zero"] = "anchored"
    rank: int = 12
    task_rank: int = 4
    filter: Literal["dynamic", "static"] = "dynamic"
    scale: float = 4.0
    modulation: float = 2.0
    kernel_size: Literal[1, 3, 5, 7] = 1
    conv_mode: Literal["depthwise", "full"] = "depthwise"
    kernel_base: Literal["shared", "independent"] = "shared"
    lowpass: bool = False
    tokens: Literal["condition", "vpt"] = "condition"
    clock_hidden: int | None = None
    clock_offsets: tuple[float, ...] = ()
    clock: Literal["net", "free", "fixed"] = "net"
    frequency_scope: Literal["global", "stage", "layer"] = "global"
    features: Literal["stage", "merged"] = "stage"
    decoder_channels: tuple[int, ...] = (18, 36, 72, 144)
    decoder_hidden: int | None = None
    decoder_position: bool = False
    decoder_base: Literal["sine", "shared", "independent"] = "sine"
    task_axis: Literal["vmap", "map"] = "vmap"
    dtype: Literal["float32", "bfloat16"] = "float32"
    drop_path: float = 0.0
    adapter_dropout: float = 0.0
    trainable: tuple[Group, ...] = ()

    output_bias: Literal["labels", "zero"] = "labels"
    learning_rate: float = 1e-3
    adapter_lr_mult: float = 1.0
    task_lr_mult: float = 1.0
    decoder_lr_mult: float = 1.0
    warmup_steps: int = 20
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    steps: int = 600
    batch_size: int = 8
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 100
    max_to_keep: int = 3
    merge_stats_every: int = 10
    seed: int = 0
    workers: int = 2
    mesh: MeshConfig = MeshConfig()
    augment: AugmentConfig = AugmentConfig()
    text: TextConfig = TextConfig()
    adapters: AdapterConfig = AdapterConfig()

    def __post_init__(self) -> None:
        """Raises ConfigError when a value is outside its bounds."""
        _check_bounds(self)

    def loss_weight(self, task: str, default: float) -> float:
        """The loss weight of ``task``: the configured one, else ``default``."""
        return dict(self.loss_weights).get(task, default)


# Keys that say where and how a run is executed, not what it computes: a run may be resumed with
# other values of them.
EXECUTION_KEYS = (
    "data_dir",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "max_to_keep",
    "merge_stats_every",
    "workers",
    "mesh",
)

# Keys that hold pairs of task and value; a config file writes them as a mapping.
PER_TASK_KEYS = ("channels", "loss_weights", "loss_kinds")
_PAIR_KEYS = (*PER_TASK_KEYS, "weighting_options")

# The options of all weightings in core.weighting, which a command can set one by one; told here
# because a config, a bad one above all, should not wait for JAX.
WEIGHTING_OPTIONS = (
    *("alpha", "c", "floor", "learning_rate", "start"),
    *("steps_per_epoch", "temperature", "weight_decay", "weights"),
)

# Inclusive bounds; a tuple value is checked element by element, None always passes.
_BOUNDS: dict[str, tuple[float, float]] = {
    "image_size": (1, math.inf),
    "train_size": (1, math.inf),
    "eval_size": (1, math.inf),
    "rank": (1, math.inf),
    "task_rank": (1, math.inf),
    "clock_hidden": (1, math.inf),
    "modulation": (0, math.inf),
    "decoder_channels": (1, math.inf),
    "decoder_hidden": (1, math.inf),
    "drop_path": (0, 0.999),
    "adapter_dropout": (0, 0.999),
    "learning_rate": (0, math.inf),
    "adapter_lr_mult": (0, math.inf),
    "task_lr_mult": (0, math.inf),
    "decoder_lr_mult": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "clip_norm": (1e-12, math.inf),
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "log_every": (1, math.inf),
    "eval_every": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "max_to_keep": (1, math.inf),
    "merge_stats_every": (0, math.inf),
    "seed": (0, 2**31 - 1),
    "workers": (0, math.inf),
    "augment.scale": (1e-3, 1e3),
    "augment.rotate": (0, 180),
    "augment.crop": (1, math.inf),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "text.max_tokens": (3, math.inf),
    "text.dropout": (0, 0.999),
    "adapters.hidden": (1, math.inf),
    "adapters.dropped": (0, math.inf),
    "adapters.value_penalty": (0, math.inf),
    "mesh.data": (-1, math.inf),
    "mesh.task": (-1, math.inf),
    "mesh.model": (-1, math.inf),
}


def from_dict(mapping: Mapping[str, Any]) -> Config:
    """Makes a :class:`Config` from plain values.

    Args:
      mapping: keys of :class:`Config`; those left out take their defaults.  Lists pass for tuples,
        whole numbers for floats, and a mapping for the pairs of ``channels``,
        ``loss_weights``, ``loss_kinds`` and ``weighting_options`` (where None means the default).

    Returns:
      The checked config.

    Raises:
      ConfigError: an unknown key (naming the nearest), a value of another type, a value that is not
        among the choices, or one outside its bounds.

    Examples:
      >>> from_dict({"rank": 4, "mesh": {"model": 2}}).mesh.model
      2
    """
    return _dataclass_from(Config, mapping, "")


def from_config_dict(config: Any) -> Config:
    """Makes a :class:`Config` from an ``ml_collections.ConfigDict`` or a plain mapping.

    A config file has per-task keys (:data:`PER_TASK_KEYS`) for all its tasks and a command may
    choose fewer of them, so entries of tasks that are not chosen are left out here.
    """
    values = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    chosen = values.get("tasks", Config.tasks)
    for key in PER_TASK_KEYS:
        if isinstance(values.get(key), Mapping):
            values[key] = {task: item for task, item in values[key].items() if task in chosen}
    return from_dict(values)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as JSON-able values; :func:`from_dict` gives the same config back."""
    plain = dataclasses.asdict(config)
    plain.update({key: dict(plain[key]) for key in _PAIR_KEYS})
    return _jsonable(plain)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that make ``new`` another experiment than ``old``, as ``{key: (old, new)}``.

    Execution keys (:data:`EXECUTION_KEYS`) are left out: they may change between two starts.
    """
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key.split(".")[0] not in EXECUTION_KEYS
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict of :func:`to_dict` with dotted keys, as commands write them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return flat


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return value


def _dataclass_from(cls: type, mapping: Any, prefix: str) -> Any:
    if dataclasses.is_dataclass(mapping) and isinstance(mapping, cls):
        return mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"config key {prefix.rstrip('.')!r} is {mapping!r}; expected a mapping of "
            f"{', '.join(field.name for field in dataclasses.fields(cls))}"
        )
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise ConfigError(
                f"unknown config key {f'{prefix}{key}'!r}{did_you_mean(str(key), hints)}"
            )
    return cls(**{key: _coerce(value, hints[key], prefix + key) for key, value in mapping.items()})


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """``value`` as ``hint`` asks (lists to tuples, ints to floats), or ConfigError."""
    if key in _PAIR_KEYS and isinstance(value, Mapping):
        value = tuple((task, item) for task, item in value.items() if item is not None)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass_from(hint, value, f"{key}.")
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _coerce(value, inner, key)
    if origin is Literal:
        if value not in arguments:
            hint_text = did_you_mean(value, arguments) if isinstance(value, str) else ""
            raise ConfigError(
                f"config key {key!r} is {value!r}; expected one of "
                f"{', '.join(map(repr, arguments))}{hint_text if 'did you' in hint_text else ''}"
            )
        return value
    if origin is tuple and isinstance(value, tuple | list):
        if arguments[-1] is Ellipsis:
            return tuple(_coerce(item, arguments[0], key) for item in value)
        if len(value) == len(arguments):
            return tuple(
                _coerce(item, argument, key)
                for item, argument in zip(value, arguments, strict=True)
            )
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    raise ConfigError(
        f"config key {key!r} is {value!r} ({type(value).__name__}); expected {_describe(hint)}"
    )


def _describe(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
    }
    if hint in names:
        return names[hint]
    arguments = typing.get_args(hint)
    if arguments[-1] is Ellipsis:
        return f"a tuple, each item {_describe(arguments[0])}"
    return f"a tuple of {len(arguments)}: {', '.join(map(_describe, arguments))}"


def _check_bounds(config: Config) -> None:
    for key, (low, high) in _BOUNDS.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and not low <= item <= high:
                bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise ConfigError(f"config key {key!r} is {item!r}; expected {bounds}")
    if (config.add_task is None) != (config.base_run is None):
        given, missing = "add_task", "base_run"
        if config.add_task is None:
            given, missing = missing, given
        raise ConfigError(
            f"config key {given!r} is set and {missing!r} is not; expected both, the new task and "
            "the work directory of the run that learns it"
        )
    if not config.tasks:
        raise ConfigError("config key 'tasks' is empty; expected at least one task")
    if len(set(config.tasks)) != len(config.tasks):
        raise ConfigError(f"config key 'tasks' names a task twice: {', '.join(config.tasks)}")
    for key in PER_TASK_KEYS:
        for task, _ in getattr(config, key):
            if task not in config.tasks:
                raise ConfigError(
                    f"config key {key!r} names {task!r}, which is not in 'tasks'"
                    f"{did_you_mean(task, config.tasks)}"
                )
    for task, width in config.channels:
        if width < 1:
            raise ConfigError(f"config key 'channels.{task}' is {width!r}; expected at least 1")
    for task, weight in config.loss_weights:
        if not 0 <= weight < math.inf:
            raise ConfigError(
                f"config key 'loss_weights.{task}' is {weight!r}; expected a number, at least 0"
            )
    if config.augment.scale[0] > config.augment.scale[1]:
        raise ConfigError(
            f"config key 'augment.scale' is {config.augment.scale!r}; "
            "expected the smaller factor first"
        )
    if config.mesh.task != 1:
        raise ConfigError(
            f"config key 'mesh.task' is {config.mesh.task}; expected 1, since no array is cut "
            "along the task axis and devices would repeat each other's work"
        )
    for axis in ("data", "model"):
        if getattr(config.mesh, axis) == 0:
            raise ConfigError(
                f"config key 'mesh.{axis}' is 0; expected a positive size, or -1 for all "
                "the devices that are left"
            )
