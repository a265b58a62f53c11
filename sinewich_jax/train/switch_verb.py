"""``sinewich switch WORD``: tasks as small changes of one base, in one file."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from sinewich_jax.errors import ConfigError, did_you_mean


class Word(NamedTuple):
    """A word of the verb.

    Attributes:
      module: that has ``add_arguments`` and ``run``; imported when the word is called.
      text: a line of help.
    """

    module: str
    text: str


WORDS = {
    "pack": Word(
        "sinewich_jax.train.switch_pack_word",
        "turn models that were trained from one base into switches in one file",
    ),
    "apply": Word(
        "sinewich_jax.train.switch_apply_word",
        "write the base with one task switched on, or with a mixture of tasks",
    ),
    "inspect": Word(
        "sinewich_jax.train.switch_inspect_word",
        "say what a file of switches holds, in bytes beside the entropy bound",
    ),
    "route": Word(
        "sinewich_jax.train.switch_route_word",
        "keep a few examples of each task, and ask them whose a picture is",
    ),
    "evaluate": Word(
        "sinewich_jax.train.switch_evaluate_word",
        "score the tasks of a bank as a router sends their pictures, protocol by protocol",
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the library: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message}; '{self.prog} --help' says more")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments; those of a word belong to the word."""
    listing = "\n".join(f"  {name:<10}{word.text}" for name, word in WORDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"words:\n{listing}\n\n'sinewich switch WORD --help' says more."
    parser.add_argument("word", metavar="WORD", nargs="?", help=", ".join(WORDS))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Calls a word."""
    if arguments.word is None:
        raise ConfigError(f"no word is named, expected one of {', '.join(WORDS)}")
    if arguments.word not in WORDS:
        raise ConfigError(
            f"unknown word {arguments.word!r} of 'sinewich switch'"
            f"{did_you_mean(arguments.word, WORDS)}"
        )
    path, text = WORDS[arguments.word]
    module = importlib.import_module(path)
    parser = Parser(prog=f"sinewich switch {arguments.word}", description=text, allow_abbrev=False)
    module.add_arguments(parser)
    # Options may stand between the names of files.
    return module.run(parser.parse_intermixed_args(arguments.rest))


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words by name, in order.

    Raises:
      ConfigError: another form, or a name twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} is {text!r}, expected NAME=PATH")
        if name in found:
            raise ConfigError(f"{option} names {name!r} twice; give each a name of its own")
        found[name] = value
    return found


def number(option: str, text: str) -> float:
    """A number of the command line.

    Raises:
      ConfigError: something else.
    """
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} is {text!r}, expected a number") from None


def needed(word: str, arguments: argparse.Namespace, *names: str) -> None:
    """Refuses a call of a word without options that it cannot do without.

    Raises:
      ConfigError: naming them.
    """
    *others, last = [f"--{name}" for name in names if not getattr(arguments, name)] or [""]
    if last:
        missing = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        raise ConfigError(f"{missing} missing; 'sinewich switch {word} --help' says more")


def say(notes: Sequence[str]) -> None:
    """Prints what a user should know to standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def leaves(count: int) -> str:
    """A number of leaves for people to read."""
    return "1 leaf" if count == 1 else f"{count} leaves"


def size(count: float) -> str:
    """A number of bytes for people to read."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} bytes"


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[..., None] | None]:
    """A progress bar where there is a terminal, else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from sinewich_jax.train.progress import progress_bar

    with progress_bar(title, 1) as advance:
        yield advance


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def file(text: str) -> Path:
    """A path that is a file, for words that read one.

    Raises:
      ConfigError: nothing is there, or a folder.
    """
    path = Path(text)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise ConfigError(f"expected a file of switches at {path}, found {found}; check the path")
    return path
