"""``python -m sinewich_jax`` is the command ``sinewich``."""

from __future__ import annotations

import sys

from sinewich_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
