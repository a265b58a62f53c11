"""``sinewich merge RULE --base PATH --expert NAME=PATH... --out DIR``: files to files, no JAX."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sinewich_jax.errors import ConfigError, did_you_mean

_SHOWN = 3  # names of leaves on one line
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments; those of the rules are taken by :func:`take_rest`."""
    parser.allow_abbrev = False  # or an option of a rule would be taken for one of these
    parser.epilog = (
        "Options of the rule are given by name, as in '--density 0.2 --scope global'; 'sinewich "
        "merge --list' shows the rules and their options."
    )
    parser.add_argument("rule", metavar="RULE", nargs="?", help="how to merge, see --list")
    parser.add_argument("--list", action="store_true", help="print the table of rules")
    parser.add_argument(
        "--base",
        metavar="PATH",
        type=Path,
        help="what all experts started from: safetensors (also in shards), .npz, one of a run's "
        "checkpoints, or the run's work directory for what that run started from. Runs with "
        "adapters are merged as the kernels that these make where PATH is a plain backbone, and "
        "as factors where it is a run",
    )
    parser.add_argument(
        "--expert",
        metavar="NAME=PATH[@TASK]",
        action="append",
        default=[],
        help="a model that was trained from the base; give it once for each, two at least. Of a "
        "run with adapters and several tasks one is taken: TASK, or that which is called NAME",
    )
    parser.add_argument(
        "--stats",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="statistics of an expert, for rules that need them: leaves PATH/row and PATH/col, "
        "PATH/diag, or arrays",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="an empty or new folder")
    parser.add_argument(
        "--keep", metavar="REGEX", help="leaves that are not merged and stay with each task (heads)"
    )
    parser.add_argument(
        "--only", metavar="REGEX", help="leaves to merge; all others stay those of the base"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="score runs under every rule on their own validation data instead, one table; "
        "RULE is left out, --out takes the table and a picture",
    )
    parser.add_argument(
        "--rules", metavar="RULE,RULE", help="which rules to compare (default: all that can be)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a former merge")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be merged, what stays, and the memory needed; write nothing",
    )


def take_rest(arguments: argparse.Namespace, words: list[str]) -> None:
    """Keeps the words that are options of the rule."""
    arguments.rest = words


def run(arguments: argparse.Namespace) -> int:
    """Lists the rules, says what a merge would do, or merges."""
    from sinewich_jax.merging.registry import find, rules
    from sinewich_jax.train import merge_tasks

    if arguments.list:
        print(rule_table(rules()))
        return 0
    if arguments.compare:
        return _compare(arguments)
    if arguments.rule is None:
        raise ConfigError("no rule is named; 'sinewich merge --list' shows all of them")
    rule = find(arguments.rule)
    options = rule_options(rule, arguments.rest)
    experts = _pairs("expert", arguments.expert)
    missing = [f"--{name}" for name in ("base", "out") if getattr(arguments, name) is None]
    if arguments.dry_run:
        missing = [name for name in missing if name != "--out"]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{' and '.join(missing)} {verb} missing; 'sinewich merge --help' says more"
        )
    if len(experts) < 2:
        raise ConfigError(
            f"found {len(experts)} expert ({', '.join(experts) or 'none'}), expected at least two "
            "to merge; add --expert NAME=PATH"
        )
    given = {
        "stats": _pairs("stats", arguments.stats) or None,
        "keep": arguments.keep,
        "only": arguments.only,
        "overwrite": arguments.overwrite,
    }
    with merge_tasks.opened(arguments.base, experts) as (base, models):
        call = (rule.name, base, models, arguments.out)
        (_show if arguments.dry_run else _merge)(call, given | options)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.rule is not None or arguments.rest or arguments.dry_run:
        # The value of an unknown option would be taken for the rule.
        extra = [*arguments.rest, arguments.rule or "--dry-run"][0]
        raise ConfigError(
            f"--compare tries rules with their default options, found {extra!r}; name rules by "
            "--rules RULE,RULE"
        )
    experts = _pairs("expert", arguments.expert)
    if arguments.base is None or len(experts) < 2:
        raise ConfigError(
            "--compare needs --base PATH and two runs at least, --expert NAME=WORKDIR"
        )
    from sinewich_jax.train import cache, merge_compare
    from sinewich_jax.train.progress import progress_bar

    cache.enable_compilation_cache()
    with contextlib.ExitStack() as stack:
        advance = None
        if sys.stderr.isatty():
            advance = stack.enter_context(progress_bar("comparing", 1))
        found = merge_compare.compare(
            arguments.base,
            experts,
            rules=arguments.rules.split(",") if arguments.rules else None,
            stats=_pairs("stats", arguments.stats) or None,
            keep=arguments.keep,
            only=arguments.only,
            progress=advance,
        )
    print(found.table())
    for rule, why in found.left_out.items():
        print(f"not tried: {rule}: {why}")
    if arguments.out is not None:
        merge_compare.write(found, arguments.out)
        print(f"written: {arguments.out / 'compare.md'}")
    return 0


def _show(call: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    from sinewich_jax.merging.stream import plan_files

    plan = plan_files(*call, **keywords)
    print(f"{plan.rule.name}: {plan.rule.summary.replace('``', '')}")
    print(f"merged       {_listed(plan.merged)}")
    print(f"as the base  {_listed(plan.same + plan.base_only)}")
    for name, leaves in plan.per_task.items():
        if leaves:
            print(f"stays with {name}: {_listed(leaves)}")
    print(f"costs        {plan.rule.cost}; a pass reads {_size(plan.bytes_read)}")
    outputs = ", ".join(f"{name}.safetensors" for name in plan.files)
    print(f"writes       {_size(plan.bytes_written)}: {outputs}")
    print(f"memory       at most about {_size(plan.memory)}")
    _say(plan.notes)
    print("nothing was read or written (--dry-run)")


def _merge(call: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    from sinewich_jax.merging.stream import merge_files

    _reuse_memory()
    with contextlib.ExitStack() as stack:
        advance = None
        if sys.stderr.isatty():
            from sinewich_jax.train.progress import progress_bar

            advance = stack.enter_context(progress_bar("merging", 1))
        report = merge_files(*call, progress=advance, **keywords)
    plan = report.plan
    leaves = "1 leaf" if len(plan.merged) == 1 else f"{len(plan.merged)} leaves"
    print(f"{plan.rule.name}: {leaves} of {len(call[2])} experts merged", end="")
    print(f", {len(plan.same) + len(plan.base_only)} as in the base", end="")
    kept = max(map(len, plan.per_task.values()))
    print(f", {kept} kept for each task" if kept else "")
    _say(report.notes)
    print(f"written: {', '.join(map(str, report.outputs))}")


def _reuse_memory() -> None:
    """Tells glibc to keep freed memory for the next array instead of giving it back at once.

    Leaf after leaf needs the same few large arrays, and each that comes anew from the system is
    filled with zeros first: a quarter of the time of a merge. Only this process is concerned.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another library, with its own ways
        return
    trim_threshold, mmap_threshold, arenas = -1, -3, -8  # as malloc.h numbers them
    for option, value in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**30), (arenas, 1)):
        mallopt(option, value)


def rule_options(rule: Any, words: list[str]) -> dict[str, Any]:
    """The options of a rule out of ``--name value`` or ``--name=value``.

    Args:
      rule: the rule; the defaults of its options say what a value has to be.
      words: what the parser left.

    Raises:
      ConfigError: an option that neither the rule nor the verb has (the nearest is offered), or a
        value of the wrong kind.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    ours = [name for action in parser._actions for name in action.option_strings]
    options: dict[str, Any] = {}
    words = list(words)
    while words:
        word, equals, value = words.pop(0).partition("=")
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in rule.options:
            known = [*ours, *(f"--{option.replace('_', '-')}" for option in rule.options)]
            raise ConfigError(
                f"the merge rule {rule.name!r} has no option {word!r}{did_you_mean(word, known)}"
            )
        if not equals:
            if not words:
                raise ConfigError(f"the option {word} has no value; pass {word} VALUE")
            value = words.pop(0)
        options[name] = _value(word, value, rule.options[name])
    return options


def _value(word: str, text: str, default: Any) -> Any:
    """The value of an option, of the kind that its default has."""
    kind = type(default)
    try:
        if kind is bool:
            return _WORDS[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is str:
            return text
        if "=" in text:  # one number a task
            return {n: float(v) for n, _, v in (pair.partition("=") for pair in text.split(","))}
    except (KeyError, ValueError):
        raise ConfigError(
            f"the option {word} is {text!r}, expected something like {default!r}"
        ) from None
    with contextlib.suppress(ValueError):
        return json.loads(f"[{text}]" if "," in text and text[0] not in "[{" else text)
    return text


def rule_table(rules: Iterable[Any]) -> str:
    """What there is: name, what it needs, whether it streams, its cost; below, options and source.

    Args:
      rules: to show, a row and two lines each.
    """
    rules = list(rules)
    header = ("rule", "needs", "streams", "gives", "cost")
    rows = [
        (
            rule.name,
            ", ".join(rule.needs) or "-",
            "yes" if rule.streaming else "no",
            "a model a task" if rule.conditional else "one model",
            rule.cost,
        )
        for rule in rules
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return "  ".join(cells).rstrip()

    lines = [line(header)]
    for rule, row in zip(rules, rows, strict=True):
        options = " ".join(_shown(*option) for option in rule.options.items())
        lines += [line(row), f"    options: {options or 'none'}", f"    source: {rule.source}"]
    return "\n".join(lines)


def _shown(name: str, default: Any) -> str:
    return name if default is inspect.Parameter.empty else f"{name}={default}"


def _pairs(option: str, texts: list[str]) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--{option} is {text!r}, expected NAME=PATH")
        if name in pairs:
            raise ConfigError(f"--{option} names {name!r} twice; give each a name of its own")
        pairs[name] = Path(path)
    return pairs


def _listed(leaves: tuple[str, ...]) -> str:
    if not leaves:
        return "no leaf"
    more = f", ... {leaves[-1]}" if len(leaves) > _SHOWN else ""
    count = f"{len(leaves)} leaves" if len(leaves) > 1 else "1 leaf"
    return f"{count}: {', '.join(leaves[:_SHOWN])}{more}"


def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
