"""Trains one config: ``python train.py --config=configs/scenes.py [--config.KEY=VALUE]``.

The run's files go to ``--workdir``, by default ``runs/<config name>``. Ctrl-C or SIGTERM finishes
the step under way, saves and exits with 0; the same command goes on from there. A bad config, bad
data, a full disk or a NaN loss is one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sinewich_jax import cli
from sinewich_jax import config as configs
from sinewich_jax.errors import did_you_mean

_OF_CONFIG_DICTS = ("ml_collections", "config_dict")

_CONFIG = config_flags.DEFINE_config_file("config", help_string="The run, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run leaves its files.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the parameter counts; needs no data.")
_REFERENCE = flags.DEFINE_multi_string(
    "reference", [], "Work directory of a finished single-task run, for Delta m; repeatable."
)


def main(argv: list[str]) -> int:
    """Parses the flags and trains.

    Args:
      argv: the command line, program name first.

    Returns:
      The exit code.
    """
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # absl has printed its help, and would end with 1
        return 0
    except flags.Error as error:
        return cli.fail(_parse_error(str(error)))
    except (AttributeError, KeyError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if raised_in.parts[-3:-1] != _OF_CONFIG_DICTS:
            raise  # a fault in the config file itself: its author needs the traceback
        return cli.fail(_unknown_key(str(error)))
    if len(rest) > 1:
        return cli.fail(f"unexpected argument {rest[1]!r}; options start with --")
    if not _CONFIG.present:
        return cli.fail("no config; name one, for example --config=configs/scenes.py")
    path, _ = _config_path()
    if not path.is_file():
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*.py")))
        return cli.fail(f"the config file {path} does not exist{near}")
    if not isinstance(_CONFIG.value, ConfigDict):
        found = type(_CONFIG.value).__name__
        return cli.fail(f"get_config of {path} returned a {found}, expected a ConfigDict")
    return cli.guarded(_run)


def _run() -> int:
    if "objective" in _CONFIG.value:
        return _pretrain()
    config = configs.from_config_dict(_CONFIG.value)
    # A task that is added to a run is one run, whatever the method of the config.
    is_single = config.method == "single_task" and not config.add_task
    if _DRY_RUN.value:
        # Nothing is computed but shapes, so no accelerator has to be found.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from sinewich_jax.train import add_task, build, setup, single_task

        if config.add_task:
            experiments = [add_task.plan(config)[1]]
        else:
            # Which weights the backbone starts from does not change its size, and may be absent.
            shapes = build.for_shapes(config)
            runs = single_task.task_configs(shapes).values() if is_single else [shapes]
            experiments = [build.experiment(run) for run in runs]
        each = [setup.parameter_counts(experiment) for experiment in experiments]
        counts = {key: sum(one[key] for one in each) for key in each[0]}
        tasks = [task for experiment in experiments for task in experiment.config.tasks]
        method = experiments[0].config.method
        print(json.dumps({**counts, "method": method, "tasks": tasks}))
        return 0

    from sinewich_jax.train import add_task, cache, loop, memory, single_task

    cache.enable_compilation_cache()
    memory.keep_freed_memory()
    workdir = _workdir()
    train = single_task.train if is_single else loop.train
    train = add_task.train if config.add_task else train
    outcome = train(config, workdir, references=_REFERENCE.value)
    if outcome.status == "finished":
        where = workdir / "*" if is_single else workdir
        print(f"results: {where / 'results.md'}", file=sys.stderr)
    return 0


def _pretrain() -> int:
    """Configs with an ``objective`` make a backbone instead of training tasks."""
    if _DRY_RUN.value:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from sinewich_jax.train import cache, memory, pretrain

    if _REFERENCE.value:
        return cli.fail("--reference is for Delta m between tasks, and pretraining has no task")
    config = pretrain.PretrainConfig.from_dict(_CONFIG.value.to_dict())
    if _DRY_RUN.value:
        print(json.dumps({**pretrain.parameter_counts(config), "objective": config.objective}))
        return 0

    cache.enable_compilation_cache()
    memory.keep_freed_memory()
    results = pretrain.run(config, _workdir())
    print(json.dumps(results))
    return 0


def _workdir() -> Path:
    return Path(_WORKDIR.value) if _WORKDIR.value else Path("runs") / _name()


def _config_path() -> tuple[Path, str]:
    """The config file and what follows its colon."""
    path, _, arg = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path(path), arg


def _name() -> str:
    """``configs/scenes.py:debug`` is called ``scenes_debug``."""
    path, arg = _config_path()
    return "_".join([path.stem, *filter(None, arg.split(","))])


def _parse_error(message: str) -> str:
    """The last line of what absl says: what a config file raised, without the traceback."""
    if "Traceback (most recent call last)" not in message:
        return message
    return re.sub(r"^[\w.]+: ", "", message.strip().splitlines()[-1])


def _unknown_key(message: str) -> str:
    """A ConfigDict's complaint about a key; it names the nearest of its own, where one is near."""
    key = next(iter(re.findall(r"'(\w+)", message)), message)
    near = re.search(r'Did you mean "(\w+)"', message)
    hint = f"did you mean {near[1]!r}?" if near else "the config file has none that is near"
    return f"unknown config key {key!r} ({hint})"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
