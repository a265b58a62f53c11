"""The page on merging: its table is the registry's, its options exist, its commands run."""

from __future__ import annotations

import pathlib
import re
import runpy
import shlex

import pytest

from sinewich_jax import merging
from sinewich_jax.cli import main
from sinewich_jax.merging.registry import check_options, find
from sinewich_jax.report.tables import markdown_table
from sinewich_jax.storage import load_safetensors
from sinewich_jax.train.merge_verb import rule_options
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "merging.md"


def table() -> str:
    rows = [
        (
            f"`{rule.name}`",
            ", ".join(rule.needs) or "-",
            "yes" if rule.streaming else "no",
            "a model a task" if rule.conditional else "one model",
            rule.summary.replace("``", "`").rstrip("."),
        )
        for rule in merging.rules()
    ]
    return markdown_table(["rule", "needs", "streams", "gives", "what it makes"], rows, "lllll")


def commands() -> list[list[str]]:
    lines = "\n".join(blocks(PAGE, "bash")).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines if line]


def test_the_table_is_that_of_the_registry():
    """Where this fails, paste the expected table between the marks."""
    found = PAGE.read_text().split("<!-- rules -->\n")[1].split("<!-- /rules -->")[0]
    assert found == table()


def test_what_reproduces_other_toolkits_are_options_of_the_rules():
    text = PAGE.read_text().split("## As other toolkits")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!there).*\| (.*) \|$", text, re.MULTILINE)
    named = [words.split() for row in rows for words in re.findall(r"`([^`]+)`", row)]
    assert len(named) >= 15
    for name, *words in named:
        rule = find(name)
        check_options(rule, rule_options(rule, words))


@pytest.mark.slow
def test_the_commands_run_on_what_the_page_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = pathlib.Path("page.py")
    code = re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    page.write_text("\n".join(code))
    runpy.run_path(str(page))
    ran = 0
    for program, *words in commands():
        assert program == "sinewich" and words[0] == "merge"
        if any("runs/" in word for word in words):
            continue  # runs are merged in tests/train/test_merge_runs.py
        assert main(words) == 0, capsys.readouterr().err
        ran += 1
        assert ("--out" not in words or "--dry-run" in words) == (
            not pathlib.Path("merged").exists()
        )
    assert ran == 4
    merged = load_safetensors("merged/merged.safetensors")[0]
    assert merged.keys() == {"trunk/kernel"}
    assert load_safetensors("merged/cars.safetensors")[0].keys() == {"head/kernel"}
