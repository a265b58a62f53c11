"""Trains one config: ``python train.py --config=configs/scenes.py [--config.KEY=VALUE]``.

The run's files go to ``--workdir``, by default ``runs/<config name>``. Ctrl-C or SIGTERM finishes
the step under way, saves and exits with 0; the same command goes on from there. A bad config, bad
data, a full disk or a NaN loss is one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sinewich_jax import cli

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
    except flags.Error as error:
        return cli.fail(str(error))
    except (AttributeError, KeyError) as error:  # ml_collections: a key that the config lacks
        return cli.fail(f"unknown config key {' '.join(str(error).split())}")
    except FileNotFoundError as error:
        return cli.fail(f"the config file cannot be read: {error}")
    except ValueError as error:  # raised by the config file itself
        return cli.fail(str(error))
    if len(rest) > 1:
        return cli.fail(f"unexpected argument {rest[1]!r}; options start with --")
    if _CONFIG.value is None:
        return cli.fail("no config; name one, for example --config=configs/scenes.py")
    return cli.guarded(_run)


def _run() -> int:
    from sinewich_jax import config as configs

    config = configs.from_config_dict(_CONFIG.value)
    if _DRY_RUN.value:
        # Nothing is computed but shapes, so no accelerator has to be found.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from sinewich_jax.train import build, setup

        counts = setup.parameter_counts(build.experiment(config))
        print(json.dumps({**counts, "method": config.method, "tasks": list(config.tasks)}))
        return 0

    from sinewich_jax.train import cache, loop

    cache.enable_compilation_cache()
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else Path("runs") / _name()
    outcome = loop.train(config, workdir, references=_REFERENCE.value)
    if outcome.status == "finished":
        print(f"results: {workdir / 'results.md'}", file=sys.stderr)
    return 0


def _name() -> str:
    """``configs/scenes.py:debug`` is called ``scenes_debug``."""
    path, _, arg = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join([Path(path).stem, *filter(None, arg.split(","))])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
