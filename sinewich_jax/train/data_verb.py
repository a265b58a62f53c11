"""``sinewich data check DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sinewich_jax.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="check", required=True)
    check = actions.add_parser(
        "check",
        help="say what is in a copy of a published data set",
        description="Says which layout a folder or tar has, what is missing or damaged in it, and "
        "what its labels look like; writes a picture of a few samples. Nothing is written into it.",
    )
    check.add_argument("path", metavar="DIR", type=Path, help="the folder or tar")
    check.add_argument("--layout", metavar="NAME", help="the data set, when it cannot be told")
    check.add_argument("--examples", type=int, default=64, help="read so many; 0 reads all")
    check.add_argument("--out", type=Path, metavar="PNG", help="the picture, NAME_samples.png")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    check.add_argument("--depth-unit", choices=("auto", "m", "mm"), help="for nyud_mt")
    check.add_argument("--target", help="for cityscapes_mt: what depth means")
    check.add_argument("--classes", type=int, help="for cityscapes_mt in NumPy files")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 1 when something is at fault (a missing label is not)."""
    from sinewich_jax import storage
    from sinewich_jax.data.archives import check, layouts
    from sinewich_jax.report import canvas
    from sinewich_jax.train import data_check

    if arguments.examples < 0:
        raise ConfigError(f"--examples is {arguments.examples}, expected 0 for all or more")
    if arguments.layout is not None:
        tree = layouts.find_tree(arguments.layout, arguments.path)
        kind = layouts.reader_class(arguments.layout)
    else:
        tree, kind = layouts.detect(arguments.path)
    picture = arguments.out or Path(f"{kind.name}_samples.png")
    with tree:
        for path in filter(None, (picture, arguments.json)):
            _refuse_inside(path, arguments.path)
        reader = kind(tree, **_options(arguments, kind.name))
        report = check.examine(reader, arguments.examples)
        print("\n".join(data_check.lines(report, reader.class_names)))
        if report.samples:
            canvas.save(data_check.draw(report.samples, reader.made, report.notes), picture)
            print(f"\nwritten: {picture}")
    if arguments.json is not None:
        storage.write_json(arguments.json, data_check.as_json(report))
        print(f"written: {arguments.json}")
    return 1 if report.faults else 0


def _options(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """What the reader takes besides; an option of another layout is refused."""
    takes = {"nyud_mt": ("depth_unit",), "cityscapes_mt": ("target", "classes")}.get(name, ())
    given = {
        key: value
        for key in ("depth_unit", "target", "classes")
        if (value := getattr(arguments, key)) is not None
    }
    for key in given:
        if key not in takes:
            raise ConfigError(f"--{key.replace('_', '-')} means nothing for {name}; leave it out")
    return given


def _refuse_inside(path: Path, root: Path) -> None:
    """The user's data is not written into, not even by a default name."""
    if root.is_dir() and path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"{path} would be written into {root}, which is only read; name another place by "
            "--out or --json"
        )
