"""``sinewich import-backbone FILE --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="Swin weights under official, timm or transformers names: safetensors, or a zip "
        "archive of torch (.pth, .pt, .bin)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="gets <preset>.safetensors"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="backbone that it shall be (tiny, swin_t, swin_s, swin_b, swin_l); told by the shapes "
        "when left out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Converts the file, and prints what was read, what was not, and how to use it."""
    from sinewich_jax.convert import backbone

    imported = backbone.read_backbone(arguments.file, arguments.preset)
    path = backbone.save_backbone(arguments.out, imported)
    under = f" under {imported.family.prefix!r}" if imported.family.prefix else ""
    print(
        f"{imported.source}: {imported.preset}, {imported.family.name} names{under}, "
        f"{len(imported.params)} parameters"
    )
    for title, rows in (
        ("position tables resized", imported.resized),
        ("keys that a pyramid does not need", imported.left_out),
        ("unmatched keys, not read", imported.unmatched),
    ):
        print(f"{title}: {len(rows) or 'none'}")
        for row in rows:
            print(f"  {row if row.isprintable() else ascii(row)}")
    print(f"written: {path}")
    print(f"use: --config.backbone={imported.preset} --config.backbone_weights={path}")
    return 0
