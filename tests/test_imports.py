"""What may import what, how long importing takes, and what must never be loaded by it."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def python(*args: str, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, so that nothing is loaded yet."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- the floors -------------------------------------------------------------------------------


def lint(tree: pathlib.Path) -> tuple[int, str]:
    """Exit status and report of the import contracts of ``tree/pyproject.toml``."""
    code = (
        "import sys, importlinter.cli as c; sys.exit(c.lint_imports(no_cache=True, no_logo=True))"
    )
    done = python("-c", code, cwd=tree, COLUMNS="200")
    return done.returncode, done.stdout + done.stderr


def test_the_floors_hold():
    status, report = lint(ROOT)
    assert status == 0, report


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core", "import sinewich_jax.storage", "Imports go down only"),
        ("storage", "import sinewich_jax.parallel", "never across a floor"),
        ("new_room", "", "Imports go down only"),
        ("core", "import optax", "core is mathematics"),
        ("merging", "import flax.linen", "Only models and their training know Flax"),
        ("merging", "import sinewich_jax.nn", "Imports go down only"),
        ("train", "import orbax.checkpoint", "Only storage knows file formats"),
        ("train", "import grain", "Only data knows TFDS and Grain"),
        ("data", "import tokenizers", "Only data knows tokenizers"),
        ("data", "def late():\n    import tensorflow", "needs no TensorFlow"),
        ("train", "from absl import flags", "flags belong to train.py"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path, module, line, contract):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "sinewich_jax",
        tmp_path / "sinewich_jax",
        ignore=lambda folder, names: [n for n in names if n.endswith((".pyc", ".safetensors"))],
    )
    init = tmp_path / "sinewich_jax" / module / "__init__.py"
    init.parent.mkdir(exist_ok=True)
    with init.open("a") as file:
        file.write(f"\n\n{line}\n")
    status, report = lint(tmp_path)
    assert status == 1, report
    broken = [row for row in report.splitlines() if " BROKEN" in row]
    assert any(contract in row for row in broken), report


# --- the cost of importing --------------------------------------------------------------------


def seconds(statement: str) -> float:
    """Time that ``statement`` takes in a fresh interpreter."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_the_package_imports_quickly():
    best = min(seconds("import sinewich_jax") for _ in range(5))
    assert best < 0.7


@pytest.mark.slow
def test_merging_costs_little_more_than_jax():
    # The fastest of interleaved runs: a busy machine slows single runs, hardly ever all of them.
    jax_alone, merging = [], []
    for attempt in range(12):
        jax_alone.append(seconds("import jax"))
        merging.append(seconds("from sinewich_jax import merging"))
        if attempt >= 2 and min(merging) <= min(jax_alone) + 0.3:
            break
    assert min(merging) <= min(jax_alone) + 0.3, (jax_alone, merging)


# --- what importing must not load -------------------------------------------------------------

_HEAVY = ["tensorflow", "torch", "tensorflow_datasets", "grain", "orbax", "matplotlib", "flax"]


@pytest.fixture
def fake_tensorflow(tmp_path) -> str:
    """A folder with a ``tensorflow`` that can be imported, so that loading it would be seen."""
    (tmp_path / "tensorflow.py").write_text("__version__ = '0.0'\n")
    return str(tmp_path)


def loaded(statement: str, path: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after ``statement``."""
    code = f"{statement}; import sys, json; print(json.dumps([m for m in sys.modules]))"
    done = python("-c", code, PYTHONPATH=os.pathsep.join([str(ROOT), path]))
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_front_door_loads_nothing(fake_tensorflow):
    assert not loaded("import sinewich_jax", fake_tensorflow) & {"jax", "numpy", *_HEAVY}


def test_a_bad_command_is_told_before_jax_is_loaded(fake_tensorflow):
    config = "import train; from configs import scenes; scenes.get_config('debug,lora')"
    assert not loaded(config, fake_tensorflow) & {"jax", *_HEAVY}


def test_merging_loads_no_model_library(fake_tensorflow):
    assert not loaded("from sinewich_jax import merging", fake_tensorflow) & set(_HEAVY)


def test_no_room_loads_tensorflow_or_torch(fake_tensorflow):
    rooms = loaded("import sinewich_jax as sj; [getattr(sj, n) for n in dir(sj)]", fake_tensorflow)
    assert "sinewich_jax" in rooms
    assert not rooms & {"tensorflow", "torch", "tensorflow_datasets", "grain", "matplotlib"}
