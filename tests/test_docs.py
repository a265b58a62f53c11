"""The pages tell the truth: their code runs, their commands and links lead somewhere."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sinewich_jax import config

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced code blocks of ``page`` in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


SHELL = [
    pytest.param(code, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "bash"))
]


@pytest.fixture
def my_photos(tmp_path, monkeypatch):
    """The folder that the README's example reads, in the current directory."""
    rng = np.random.default_rng(0)
    for folder in ("images", "semseg"):
        (tmp_path / "my_photos" / folder).mkdir(parents=True)
    for stem in ("beach", "street", "garden"):
        photo = rng.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(photo).save(tmp_path / "my_photos" / "images" / f"{stem}.png")
        classes = rng.integers(0, 3, (24, 32), np.uint8)
        Image.fromarray(classes).save(tmp_path / "my_photos" / "semseg" / f"{stem}.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_python_blocks_run(my_photos, tmp_path):
    scripts = []
    for page in PAGES:
        for number, code in enumerate(blocks(page, "python")):
            scripts.append(f"{name_of(page).replace('/', '_')}_{number}.py")
            (tmp_path / scripts[-1]).write_text(code)
    # One interpreter, not this one: an example may register a task.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import runpy; [*map(runpy.run_path, {scripts})]"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_has_examples_and_both_commands():
    assert len(blocks(README, "python")) >= 2
    text = README.read_text()
    for command in ("main job", "tests"):
        mark = f"<!-- ci: {command} -->\n```bash\n"
        assert mark in text, f"no marked block for the {command}"
        block = text.split(mark)[1].split("```")[0].strip()
        assert block.startswith("python3 -m venv"), "the command must do its own set-up"
        assert "\n" not in block, "the command is one line to copy"


@pytest.mark.parametrize("code", SHELL)
def test_commands_name_files_and_keys_that_exist(code):
    for file in re.findall(r"(?<![\w/.-])((?:[\w.-]+/)*[\w-]+\.(?:py|txt|toml))\b", code):
        assert (ROOT / file).is_file(), f"{file} does not exist"
    for key in re.findall(r"--config\.([\w.]+)=", code):
        value = config.Config()
        for part in key.split("."):
            # Below pairs such as loss_weights, the rest of the key is a task.
            if dataclasses.is_dataclass(value):
                assert part in {field.name for field in dataclasses.fields(value)}, key
                value = getattr(value, part)
            else:
                assert part in config.Config().tasks, key


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{name_of(page)} links to {target}"


def test_every_page_is_listed_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        path = page.relative_to(ROOT / "docs").as_posix()
        # The results have an index of their own once there is more than one page.
        if path != "index.md" and not (path.startswith("results/") and path != "results/index.md"):
            assert f"({path})" in index, f"docs/index.md does not link to {path}"
