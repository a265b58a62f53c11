"""Run by the interpreter of an environment that holds the installed wheel and nothing else."""

from __future__ import annotations

import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[1]


def import_seconds(module: str) -> float:
    """The fastest of five imports of ``module``, each in a fresh interpreter."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    runs = (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        for _ in range(5)
    )
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Imports every room from the installed wheel, times it, and opens the shipped weights."""
    import sinewich_jax as sj

    home = pathlib.Path(sj.__file__).parent
    assert REPOSITORY not in home.parents, f"{home} is the repository, not the installed wheel"
    print(f"sinewich_jax {sj.__version__} from the wheel")

    seconds = import_seconds("sinewich_jax")
    print(f"import sinewich_jax: {seconds:.3f} s")
    assert seconds < 0.7, "importing the package takes 0.7 s or more"

    for room in sj.__all__:
        getattr(sj, room)
    assert "tensorflow" not in sys.modules, "importing the rooms loads TensorFlow"

    from safetensors.numpy import load_file

    source = REPOSITORY / "sinewich_jax"
    for path in sorted(source.rglob("*.safetensors")):
        installed = home / path.relative_to(source)
        leaves = load_file(installed)
        print(f"{installed.name}: {len(leaves)} arrays, {installed.stat().st_size / 1e6:.1f} MB")
        assert leaves, f"{installed.name} is empty"


if __name__ == "__main__":
    main()
