"""What every config file needs: the defaults of a run as a ConfigDict."""

from __future__ import annotations

import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from sinewich_jax import config as configs
from sinewich_jax.errors import ConfigError, did_you_mean


def make_config(**overrides: Any) -> ConfigDict:
    """All keys of a run with their defaults, and ``overrides`` in their place.

    Keys whose value is None get a placeholder of their type, because a command can only set a key
    whose type is known (``--config.data_dir=...``, ``--config.image_size="(64, 64)"``).

    Args:
      **overrides: values by key; a mapping for ``mesh``, ``augment`` and the per-task keys.

    Returns:
      A ConfigDict that ``sinewich_jax.config.from_config_dict`` accepts.
    """
    config = configs.from_dict(overrides)
    result = _with_placeholders(config)
    # One key a task, so that --config.loss_weights.depth=2 works; None is the task's default.
    hints = typing.get_type_hints(configs.Config)
    for key in configs.PER_TASK_KEYS:
        given = dict(getattr(config, key))
        _, kind = typing.get_args(typing.get_args(hints[key])[0])
        del result[key]
        result[key] = ConfigDict(
            {task: given.get(task, config_dict.placeholder(kind)) for task in config.tasks}
        )
    given = dict(config.weighting_options)
    del result["weighting_options"]
    result["weighting_options"] = ConfigDict(
        {key: given.get(key, config_dict.placeholder(float)) for key in configs.WEIGHTING_OPTIONS}
    )
    return result


def choose(arg: str, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The overrides that ``--config=configs/x.py:ARG`` asks for.

    Args:
      arg: variant names joined by commas, such as ``"debug,lora"``; empty for none.
      variants: overrides by variant name; where two set the same key, the later one wins.

    Raises:
      ConfigError: a name that is no variant.
    """
    overrides: dict[str, Any] = {}
    for name in filter(None, arg.split(",")):
        if name not in variants:
            raise ConfigError(f"unknown config variant {name!r}{did_you_mean(name, variants)}")
        overrides.update(variants[name])
    return overrides


def _with_placeholders(config: Any) -> ConfigDict:
    result = ConfigDict()
    for key, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, key)
        if hasattr(value, "__dataclass_fields__"):
            value = _with_placeholders(value)
        elif value is None:
            inner = next(t for t in typing.get_args(hint) if t is not type(None))
            value = config_dict.placeholder(typing.get_origin(inner) or inner)
        result[key] = value
    return result
