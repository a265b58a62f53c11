"""The command ``sinewich``: verbs over work directories, weights and merges.

A verb is one row of :data:`VERBS`: its name, the module that implements it, and a line of help.
The module is imported only when its verb is called; it offers ``add_arguments(parser)`` and
``run(arguments) -> exit code``. One that takes options which it cannot declare beforehand also
offers ``take_rest(arguments, words)`` and gets what the parser does not know.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

import sinewich_jax
from sinewich_jax.errors import ConfigError, SinewichError, did_you_mean

VERBS: dict[str, tuple[str, str]] = {
    "data": (
        "sinewich_jax.train.data_verb",
        "check a copy of a published data set: layout, faults, units, pictures",
    ),
    "evaluate": (
        "sinewich_jax.train.evaluate_verb",
        "score the newest checkpoint of a run and rewrite its results",
    ),
    "predict": (
        "sinewich_jax.train.predict_verb",
        "use a run on images or texts of your own: a file a task for each, and pictures",
    ),
    "merge": (
        "sinewich_jax.train.merge_verb",
        "make one model out of several that were trained from one base, file by file",
    ),
    "switch": (
        "sinewich_jax.train.switch_verb",
        "turn tasks into small changes of one base in one file; apply, inspect and route them",
    ),
    "bench": (
        "sinewich_jax.bench.verb",
        "measure time and memory of a part of the library on this machine",
    ),
    "import-backbone": (
        "sinewich_jax.convert.import_verb",
        "turn Swin weights of another library into a backbone of this one",
    ),
    "export": (
        "sinewich_jax.train.export_verb",
        "write one task of a run as plain weights or as a jax.export artefact",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
      argv: arguments without the program name; None takes those of the process.

    Returns:
      0; 2 after an error, which is one line on stderr; 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(argv))


def guarded(command: Callable[[], int]) -> int:
    """Runs a command and turns the library's own errors, and a full disk, into one line and 2."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except SinewichError as error:
        return fail(str(error))
    except BrokenPipeError:
        # Whoever reads, such as ``head``, has seen enough; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        from sinewich_jax.storage.atomic import is_full_disk

        if not is_full_disk(error):
            raise
        return fail(f"no space left on the disk ({error}); free some space and run it again")
    except KeyboardInterrupt:
        print("interrupted; what was saved before is whole", file=sys.stderr)
        return 130


def fail(message: str) -> int:
    """Prints ``error: message`` as one line on stderr; returns the exit code for it."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _dispatch(argv: list[str]) -> int:
    listing = "\n".join(f"  {name:<18}{text}" for name, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="sinewich",
        description="Multi-task learning in JAX.",
        epilog=f"verbs:\n{listing}\n\n'sinewich VERB --help' says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sinewich {_version()}")
    parser.add_argument("verb", metavar="VERB", nargs="?", help="what to do")
    # Split at the verb, so that its own options are left to its own parser.
    split = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    verb = parser.parse_args(argv[: split + 1]).verb
    if verb is None:
        parser.print_help()
        return 0
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}")
    path, text = VERBS[verb]
    module = importlib.import_module(path)
    verb_parser = argparse.ArgumentParser(prog=f"sinewich {verb}", description=text)
    module.add_arguments(verb_parser)
    if not hasattr(module, "take_rest"):
        return module.run(verb_parser.parse_args(argv[split + 1 :]))
    arguments, rest = verb_parser.parse_known_args(argv[split + 1 :])
    module.take_rest(arguments, rest)
    return module.run(arguments)


def _version() -> str:
    return sinewich_jax.__version__


if __name__ == "__main__":
    sys.exit(main())
