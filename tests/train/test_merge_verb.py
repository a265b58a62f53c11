"""``sinewich merge``: what it prints and refuses, and that it starts without JAX."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from sinewich_jax import merging
from sinewich_jax.cli import main
from sinewich_jax.storage import load_safetensors
from sinewich_jax.train import merge_verb
from tests.merging import files


@pytest.fixture
def words(tmp_path):
    """The arguments of a merge of three small files into ``tmp_path / "out"``."""
    base, experts = files.family()
    for expert in experts.values():
        expert["head/kernel"] = np.ones((2, len(expert)), np.float32)
    named = [f"--expert={n}={files.write(tmp_path, n, flat)}" for n, flat in experts.items()]
    origin = files.write(tmp_path, "base", base)
    return [f"--base={origin}", *named, f"--out={tmp_path / 'out'}", "--keep", "head/.*"]


def error(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_merge_and_what_it_says(words, tmp_path, capsys):
    assert main(["merge", "ties", *words, "--density", "0.5", "--scope=global"]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no bar where there is no terminal
    assert "ties: 5 leaves of 3 experts merged, 1 as in the base, 1 kept for each task" in out
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["options"]["density"] == 0.5 and record["options"]["scope"] == "global"
    base, experts = files.family()
    expected = merging.merge("ties", base, experts, density=0.5, scope="global")
    files.same(load_safetensors(tmp_path / "out" / "merged.safetensors")[0], expected)
    assert main(["merge", "average", *words]) == 2
    assert "holds a merge by 'ties' already" in error(capsys)
    assert main(["merge", "average", *words, "--overwrite"]) == 0


def test_a_dry_run_says_what_would_be_and_writes_nothing(words, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(["merge", "ties", *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "merged       5 leaves: block/bias, block/kernel, high/scale, ... stem/kernel" in out
    assert "as the base  1 leaf: steps" in out
    assert "stays with b: 1 leaf: head/kernel" in out
    assert "memory       at most about" in out
    assert "writes       0.0 MB: merged.safetensors, a.safetensors" in out
    assert sorted(tmp_path.iterdir()) == before


def test_a_note_goes_to_standard_error(words, tmp_path, capsys):
    files.write(tmp_path, "c", files.family(seed=9)[0])
    assert main(["merge", "average", *words]) == 0
    assert "note: the expert 'c' has a cosine of" in capsys.readouterr().err


def test_the_bar_counts_leaves(words, monkeypatch):
    from sinewich_jax.merging import stream

    seen = []
    real = stream.merge_files

    def watched(*call, progress, **keywords):
        return real(*call, progress=lambda *step: (seen.append(step), progress(*step)), **keywords)

    monkeypatch.setattr(stream, "merge_files", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["merge", "average", *words]) == 0
    assert seen[0] == (0, 5, "block/bias") and seen[-1] == (5, 5, "stem/kernel")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--densty", "0.2"],
            r"the merge rule 'ties' has no option '--densty' (did you mean '--de",
        ),
        (["--kep=x"], "has no option '--kep' (did you mean '--keep'?)"),
        (["extra"], "has no option 'extra'"),
        (["--density"], "the option --density has no value"),
        (["--scale", "much"], "the option --scale is 'much', expected something like 1.0"),
        (["--weighted-vote", "maybe"], "is 'maybe', expected something like True"),
        (["--weights", "a=1,z=2"], "the option 'weights' names 'z', which is no expert"),
        (["--expert", "d"], "--expert is 'd', expected NAME=PATH"),
        (["--expert", "a=x"], "--expert names 'a' twice"),
        (["--stats", "a=x"], "expected weights at x, found nothing"),
    ],
)
def test_arguments_that_cannot_be_used(more, message, words, tmp_path, capsys):
    assert main(["merge", "ties", *words, *more]) == 2
    assert message in error(capsys)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_asked_for(words, capsys):
    base, a, b, _, out, *_ = words
    for given, message in (
        ([], "no rule is named"),
        (["avrage"], "unknown merge rule 'avrage' (did you mean 'average'?)"),
        (["average"], "--base and --out are missing"),
        (["average", base, a, b], "--out is missing"),
        (["average", base, out], "found 0 expert (none), expected at least two"),
        (["average", base, a, out], "found 1 expert (a), expected at least two"),
    ):
        assert main(["merge", *given]) == 2
        assert message in error(capsys)


def test_values_have_the_kind_of_the_default():
    rule = next(rule for rule in merging.rules() if rule.name == "ties")

    def read(*words):
        return merge_verb.rule_options(rule, list(words))

    assert read("--density", "1", "--on-tie=zero") == {"density": 1.0, "on_tie": "zero"}
    assert isinstance(read("--density", "1")["density"], float)
    assert read("--weighted-vote", "false") == {"weighted_vote": False}
    assert read("--weights", "a=0.5,b=2") == {"weights": {"a": 0.5, "b": 2.0}}
    assert read("--weights", "1,2.5") == {"weights": [1, 2.5]}
    assert read("--scale", "-1") == {"scale": -1.0}


def test_no_rule_has_an_option_of_the_verb(capsys):
    import argparse
    import inspect

    from sinewich_jax.merging import stream

    parser = argparse.ArgumentParser()
    merge_verb.add_arguments(parser)
    taken = set(vars(parser.parse_args([]))) | set(inspect.signature(stream.merge_files).parameters)
    for rule in merging.rules():
        assert taken.isdisjoint(rule.options), rule.name


def test_the_list_shows_every_rule(capsys):
    assert main(["merge", "--list"]) == 0
    out = capsys.readouterr().out
    for rule in merging.rules():
        assert f"\n{rule.name} " in out and rule.source in out and rule.cost in out


def test_files_are_merged_without_jax(words):
    program = (
        "import sys\nfrom sinewich_jax.cli import main\n"
        "assert main(['merge', *sys.argv[1:]]) == 0\n"
        "heavy = {'jax', 'orbax', 'flax', 'rich', 'scipy', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", program, "ties", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
