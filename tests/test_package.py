"""The distribution: its version, its ranges, and what lies in the wheel."""

from __future__ import annotations

import ast
import hashlib
import itertools
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata

import pytest

import sinewich_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def ranges() -> dict[str, tuple[str, str]]:
    """Lower and upper bound of every dependency and extra that stands under a version range."""
    extras = PROJECT["optional-dependencies"].values()
    lines = itertools.chain(PROJECT["dependencies"], *extras)
    found = {}
    for line in lines:
        if line.startswith("sinewich-jax["):
            continue
        match = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<([\d.]+)", line)
        assert match, f"{line!r} has no lower and upper bound"
        name, low, high = match.groups()
        assert found.setdefault(name, (low, high)) == (low, high), f"{name} has two ranges"
    return found


def third_party_imports(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Top-level modules that the files import, anywhere in them, and one file for each."""
    found = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            found |= {module.partition(".")[0]: path for module in modules}
    ours = {"sinewich_jax", "configs", "tests", *sys.stdlib_module_names}
    return {module: path for module, path in found.items() if module not in ours}


def module_of(requirement: str) -> str:
    """The module that a requirement installs."""
    name = re.match(r"[\w-]+", requirement).group()
    known = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pillow": "PIL"}
    return known.get(name, name.replace("-", "_"))


def release(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def test_every_dependency_is_bounded_on_both_sides():
    for name, (low, high) in ranges().items():
        assert release(low) < release(high), name


def test_the_constraints_file_pins_the_lower_bounds():
    rows = (ROOT / "constraints-min.txt").read_text().splitlines()
    pins = dict(row.split("==") for row in rows if row and not row.startswith("#"))
    pinned = {name: release(version) for name, version in pins.items() if name != "jaxlib"}
    # ruff is left out: it formats, it does not run.
    expected = {name: release(low) for name, (low, _) in ranges().items() if name != "ruff"}
    assert pinned == expected
    assert pins["jaxlib"] == pins["jax"]


def test_what_is_imported_is_declared():
    declared = {module_of(line) for line in PROJECT["dependencies"]}
    code = [*(ROOT / "sinewich_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    imported = third_party_imports([*code, ROOT / "train.py"])
    extras = PROJECT["optional-dependencies"]
    optional = {module_of(line) for extra in ("tb", "nlu") for line in extras[extra]}
    undeclared = {m: path.name for m, path in imported.items() if m not in declared | optional}
    assert not undeclared


def test_the_promised_extras_exist():
    promised = {"test", "tb", "export", "convert", "nlu", "notebooks", "cuda", "tpu"}
    assert set(PROJECT["optional-dependencies"]) == promised


def test_the_version_is_in_the_changelog():
    assert f"\n## {sinewich_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_version_is_the_one_of_the_source():
    try:
        installed = metadata.version("sinewich-jax")
    except metadata.PackageNotFoundError:
        pytest.skip("sinewich-jax is not installed here; the tests run from the source tree")
    assert installed == sinewich_jax.__version__


def test_the_licence_is_the_canonical_text():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == _APACHE_2_0
    assert PROJECT["license"] == "Apache-2.0"


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"sinewich_jax-{sinewich_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert b"sinewich = sinewich_jax.cli:main" in archive.read(entry_points)
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sinewich_jax").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)
