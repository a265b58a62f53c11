"""From a config to a network and the weights that it starts from."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sinewich_jax import data, tasks
from sinewich_jax.config import Config, differences
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn import mobilenet, swin
from sinewich_jax.nn.bottleneck import BottleneckSpec
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.decoder import DecoderSpec
from sinewich_jax.nn.mtlora import MTLoRASpec
from sinewich_jax.nn.sinewich import MultiTaskModel, is_adapter
from sinewich_jax.nn.tadformer import TADFormerSpec
from sinewich_jax.nn.task_kernel import TaskSpec
from sinewich_jax.storage import arrays

# The rule of the task kernels for each method; the others have none.
_TASK_KINDS = {
    "sinewich": "sine",
    "sine_lora": "sine_lora",
    "lora": "lora",
    "lora_gain": "gain",
    "lora_split": "split",
    "lora_task": "task",
}
# What differs on a Swin only, by the config keys and words that ask for it.
_SWIN_METHODS = ("mtlora", "mtlora_plus", "tadformer", "adapters")
_SWIN_VALUES = {"tokens": "vpt", "features": "merged"}
# Keys about texts; by default they ask for nothing.
_OF_TEXTS = ("text.", "adapters.dropped", "adapters.sources", "adapters.value_penalty")
# The Gaussian of the paper: size and sigma.
_LOWPASS = (7, 1.0)
# Clock range: an anchored kernel carries the modulation index in its own scale, so frequencies lie
# around one; a zero start needs them large, because its kernel begins with entries near zero.
_CLOCK_SCALE = {"anchored": 0.5, "zero": 50.0}
_MOBILENET_FILE = "weights/mobilenet_v2_imagenet_int8.npz"


def model(config: Config, made: Sequence[tasks.Task]) -> MultiTaskModel:
    """The model of a config for tasks that are made already."""
    _refuse_text_keys(config)
    spec = task_part(config, len(made))
    frequency = spec.frequency if config.method == "sine_lora" else None
    options: dict[str, Any] = {
        "task": spec,
        "lora_rank": 0 if spec is None or config.method == "adapters" else config.rank,
        "lora_scale": config.scale,
        "lora_frequency": frequency,
        "task_axis": config.task_axis,
        "dtype": jnp.dtype(config.dtype),
    }
    if config.backbone == "mobilenet_v2":
        _refuse_swin_keys(config)
        backbone = mobilenet.MobileNetV2(**options)
    elif config.backbone in swin.PRESETS:
        prompts = config.method == "tadformer" or (spec is not None and config.tokens == "vpt")
        backbone = swin.swin(
            config.backbone,
            drop_path_rate=config.drop_path,
            lora_dropout=config.adapter_dropout,
            features=config.features,
            lora_merging=config.method == "mtlora_plus",
            prompts=prompts,
            **options,
        )
    else:
        known = (*swin.PRESETS, "mobilenet_v2")
        raise ConfigError(
            f"config key 'backbone' is {config.backbone!r}{did_you_mean(config.backbone, known)}"
        )
    clock = clock_part(config, len(made))
    decoder = DecoderSpec(
        channels=config.decoder_channels,
        hidden=config.decoder_hidden,
        base=config.decoder_base,
        lowpass=_LOWPASS if config.lowpass else None,
        position=config.decoder_position,
        mean_frequency=clock.mean_frequency,
    )
    heads = tuple((task.name, task.channels) for task in made)
    return MultiTaskModel(backbone, heads, clock, decoder, dtype=jnp.dtype(config.dtype))


def clock_part(config: Config, tasks: int) -> ClockSpec:
    """Where the frequencies of a config's tasks come from."""
    return ClockSpec(
        tasks,
        kind=config.clock,
        scope=config.frequency_scope,
        scale=_CLOCK_SCALE[config.start],
        hidden=config.clock_hidden,
        offsets=config.clock_offsets or None,
    )


def task_part(config: Config, tasks: int) -> swin.Task | None:
    """How the tasks of a config part in the backbone; None where they share it."""
    if config.method in ("mtlora", "mtlora_plus"):
        return MTLoRASpec(tasks, rank=config.task_rank, scale=config.scale)
    if config.method == "tadformer":
        return TADFormerSpec(tasks, rank=config.rank, filter=config.filter)
    if config.method == "adapters":
        return BottleneckSpec(tasks, config.adapters.hidden, config.adapters.placement)
    return kernel_part(config, tasks)


def kernel_part(config: Config, tasks: int) -> TaskSpec | None:
    """How kernels differ between the tasks of a config; None where they do not."""
    kind = _TASK_KINDS.get(config.method)
    if kind is None:
        return None
    if kind == "sine" and config.kernel_base == "independent":
        kind = "independent"
    return TaskSpec(
        tasks,
        kind=kind,
        rank=config.rank,
        scale=config.scale,
        start=config.start,
        modulation=config.modulation,
        lowpass=_LOWPASS if config.lowpass else None,
        kernel_size=config.kernel_size,
        conv_mode=config.conv_mode,
    )


def _refuse_text_keys(config: Config) -> None:
    """What images know nothing of, and would read past in silence."""
    if config.method == "fusion":
        raise ConfigError(
            "config key 'method' is 'fusion', which composes the adapters of text encoders; found "
            f"the task {config.tasks[0]!r}, which reads images"
        )
    for key, (silent, found) in differences(Config(), config).items():
        if key.startswith(_OF_TEXTS):
            raise ConfigError(
                f"config key {key!r} is {found!r}, which only texts have; found the task "
                f"{config.tasks[0]!r}, which reads images, expected {silent!r}"
            )


def _refuse_swin_keys(config: Config) -> None:
    """Keys that a folded convolutional backbone would read past in silence."""
    if config.method in _SWIN_METHODS:
        raise ConfigError(
            f"config key 'method' is {config.method!r}, which is defined on a Swin; found backbone "
            "'mobilenet_v2'"
        )
    for key, value in _SWIN_VALUES.items():
        if getattr(config, key) == value:
            raise ConfigError(
                f"config key {key!r} is {value!r}, which only a Swin has; found backbone "
                "'mobilenet_v2'"
            )
    groups = [group for group in config.trainable if group != "all"]
    if groups:
        raise ConfigError(
            f"config key 'trainable' is {groups[0]!r}, which 'mobilenet_v2' does not have; "
            "expected () or ('all',)"
        )
    for key in ("drop_path", "adapter_dropout"):
        if rate := getattr(config, key):
            raise ConfigError(
                f"config key {key!r} is {rate}, which only a Swin has; found backbone "
                "'mobilenet_v2', expected 0"
            )


def backbone_weights(config: Config) -> dict[str, Any] | None:
    """Pretrained parameters of the backbone by path, or None for random ones.

    Raises:
      ConfigError: no weights are shipped for this backbone.
      CheckpointError: a file that is not there or cannot be read.
    """
    name = config.backbone_weights
    if name == "random" or config.method == "scratch":
        return None
    if config.backbone == "mobilenet_v2":
        path = (
            data.find_root(config.data_dir, config.backbone, _MOBILENET_FILE)
            if name == "shipped"
            else Path(name)
        )
        return {
            f"backbone/{key}": leaf
            for key, leaf in trees.flatten_paths(mobilenet.load_mobilenet(path)).items()
        }
    if name == "shipped":
        path = (
            importlib.resources.files("sinewich_jax.nn")
            / "weights"
            / f"{config.backbone}.safetensors"
        )
        if not path.is_file():
            raise ConfigError(
                f"no weights are shipped for backbone {config.backbone!r}; set the config key "
                "backbone_weights to a file, or to 'random'"
            )
        name = str(path)
    elif not Path(name).is_file():
        raise CheckpointError(
            f"config key 'backbone_weights' names {name!r}, which is no file; expected 'shipped', "
            "'random' or a safetensors file"
        )
    elif Path(name).suffix in (".bin", ".pt", ".pth"):
        raise CheckpointError(
            f"config key 'backbone_weights' names {name!r}, a torch file, expected a safetensors "
            f"file; make one with 'sinewich import-backbone {name} --out DIR'"
        )
    flat, _ = arrays.load_safetensors(name)
    return {f"backbone/{key}": leaf for key, leaf in flat.items()}


def matched(pretrained: dict[str, Any], flat: dict[str, Any]) -> dict[str, jax.Array]:
    """The pretrained leaves, each checked against the model; adapters alone may stay fresh."""
    frozen = {path for path in flat if path.startswith("backbone/") and not is_adapter(path)}
    if missing := sorted(frozen - pretrained.keys()):
        raise CheckpointError(
            f"the backbone weights lack {len(missing)} parameters of the model, the first is "
            f"{missing[0]!r}; they belong to another backbone, or to another library (see sinewich "
            "import-backbone)"
        )
    if unknown := sorted(pretrained.keys() - frozen):
        raise CheckpointError(
            f"the backbone weights hold {len(unknown)} parameters that the model lacks, the first "
            f"is {unknown[0]!r}; they belong to another backbone"
        )
    for path, leaf in pretrained.items():
        if leaf.shape != flat[path].shape:
            raise CheckpointError(
                f"the backbone weights hold {path!r} of shape {leaf.shape}, expected "
                f"{flat[path].shape}; they belong to another backbone"
            )
    return {path: jnp.asarray(leaf, jnp.float32) for path, leaf in pretrained.items()}
