"""``sinewich switch pack``, ``apply`` and ``inspect`` on files: what they write, say and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sinewich_jax.cli import main
from sinewich_jax.core.arrays import widen
from sinewich_jax.errors import ConfigError
from sinewich_jax.storage import load_safetensors
from sinewich_jax.storage.fingerprint import fingerprint
from sinewich_jax.switches import apply, bank, make
from sinewich_jax.train import switch_leaves, switch_pack, switch_plan
from tests.merging import files

HEADS = {"a": 3, "b": 5, "c": 5}


def with_heads(narrow=True):
    """A base and experts, each with a head that the base does not have."""
    base, experts = files.family(narrow=narrow)
    base["scale"] = np.array(2.0, np.float32)
    for name, expert in experts.items():
        expert["scale"] = np.array(2.5, np.float32)
        expert["head/kernel"] = np.full((2, HEADS[name]), 0.25, np.float32)
    return base, experts


@pytest.fixture
def family():
    return with_heads()


@pytest.fixture
def folder(tmp_path, monkeypatch, family):
    """Where their files are."""
    base, experts = family
    for name, flat in {"base": base, **experts}.items():
        files.write(tmp_path, name, flat)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pack(*words, names="ab", out="tasks.swb"):
    experts = [f"--expert={name}={name}.safetensors" for name in names]
    return main(["switch", "pack", "--base=base.safetensors", *experts, f"--out={out}", *words])


def error(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def expected(base, expert, **options):
    """The switch of what the base has, and the expert's own leaves."""
    own = {path: leaf for path, leaf in expert.items() if path not in base}
    delta = {
        path: widen(expert[path], np) - widen(leaf, np)
        for path, leaf in base.items()
        if leaf.dtype != np.int32
    }
    return make.make_switch(delta, **options), own


@pytest.mark.parametrize("kind", files.FORMATS)
def test_a_bank_holds_the_switches_of_the_task_vectors(tmp_path, kind, capsys):
    base, experts = with_heads(narrow=kind != "npz")  # which knows no bfloat16
    paths = {n: files.write(tmp_path, n, f, kind) for n, f in {"base": base, **experts}.items()}
    out = tmp_path / "tasks.swb"
    named = [f"--expert={name}={paths[name]}" for name in experts]
    words = ["switch", "pack", f"--base={paths['base']}", *named, f"--out={out}", "--alpha=0.5"]
    assert main(words) == 0
    printed, err = capsys.readouterr()
    assert err == "" and "bits/param" in printed and f"written: {out}" in printed
    with bank.SwitchBank.open(out) as opened:
        assert opened.names == tuple(experts) and opened.base == fingerprint(base)
        for name, expert in experts.items():
            switch, own = expected(base, expert, alpha=0.5)
            found = opened.get(name).leaves
            assert found.keys() == switch.leaves.keys() | own.keys()
            for path, leaf in switch.leaves.items():
                assert type(found[path]) is type(leaf), path
                for field in ("mask", "sign", "knob") if path != "scale" else ("delta",):
                    np.testing.assert_array_equal(
                        getattr(found[path], field), getattr(leaf, field), err_msg=path
                    )
            np.testing.assert_array_equal(found["head/kernel"].delta, own["head/kernel"])


def test_apply_writes_the_base_with_the_task_on_and_the_tasks_own_leaves(folder, family, capsys):
    base, experts = family
    assert pack() == 0
    words = ["switch", "apply", "tasks.swb", "a", "--base=base.safetensors"]
    assert main([*words, "--out=one.safetensors"]) == 0
    assert main([*words, "--out=half.safetensors", "--weight=0.5"]) == 0
    found, metadata = load_safetensors("one.safetensors")
    switch, own = expected(base, experts["a"], alpha=0.6)
    files.same(found, {**apply.apply_switch(base, switch), **own})
    half, _ = load_safetensors("half.safetensors")
    files.same(half, {**apply.apply_switch(base, switch, 0.5), **own})
    assert metadata["task"] == "a" and metadata["base_fingerprint"] == fingerprint(base)
    assert json.loads(metadata["per_task"]) == ["head/kernel"]
    capsys.readouterr()
    # What was switched on is an expert of the base again, with a head that is its own.
    merge = ["merge", "average", "--base=base.safetensors", "--expert=x=one.safetensors"]
    assert main([*merge, "--expert=y=half.safetensors", "--out=merged"]) == 0
    assert "1 kept for each task" in capsys.readouterr().out


def test_a_mixture_has_no_leaves_of_single_tasks(folder, family, capsys):
    base, experts = family
    assert pack() == 0
    capsys.readouterr()
    words = ["switch", "apply", "tasks.swb", "a=0.5", "b=0.25", "--base=base.safetensors"]
    assert main([*words, "--out=mixed.safetensors"]) == 0
    assert "1 leaf belongs to a single task ('head/kernel') and is not" in capsys.readouterr().err
    found, metadata = load_safetensors("mixed.safetensors")
    each = {name: expected(base, experts[name], alpha=0.6)[0] for name in "ab"}
    files.same(found, apply.merge_switches(base, each, {"a": 0.5, "b": 0.25}))
    assert json.loads(metadata["weights"]) == {"a": 0.5, "b": 0.25} and "task" not in metadata


def test_one_threshold_for_the_whole_model(folder, family):
    base, experts = family
    assert pack("--scope=global", "--density=0.1", "--knob=l1", names="c") == 0
    switch, _ = expected(base, experts["c"], density=0.1, scope="global", knob="l1")
    with bank.SwitchBank.open("tasks.swb") as opened:
        found = opened.get("c").leaves
        assert opened.meta("c")["options"] == {"density": 0.1, "knob": "l1", "scope": "global"}
    for path, leaf in switch.leaves.items():
        if path != "scale":
            np.testing.assert_array_equal(found[path].mask, leaf.mask, err_msg=path)


def test_curvature_chooses_what_is_kept(folder, family):
    base, experts = family
    rng = np.random.default_rng(5)
    matrices = [path for path, leaf in base.items() if leaf.ndim == 2]
    stats = {}
    for path in matrices:
        stats[f"{path}/row"], stats[f"{path}/col"] = (
            rng.random(side).astype(np.float32) for side in base[path].shape
        )
    stats["block/bias"] = rng.random(base["block/bias"].shape).astype(np.float32)
    files.write(folder, "stats", stats)
    assert pack("--stats=a=stats.safetensors", names="a") == 0
    with bank.SwitchBank.open("tasks.swb") as opened:
        found = opened.get("a").leaves
        assert opened.meta("a")["score"] == "stats.safetensors"
    plain, _ = expected(base, experts["a"])
    for path in ("stem/kernel", "block/bias"):
        change = experts["a"][path] - base[path]
        kept = stats.get(path)
        if kept is None:
            row, col = stats[f"{path}/row"], stats[f"{path}/col"]
            kept = row[:, None] * col / row.mean()
        best = make.make_switch({path: change}, score={path: kept * change**2}).leaves[path]
        np.testing.assert_array_equal(found[path].mask, best.mask, err_msg=path)
        assert path == "block/bias" or (best.mask != plain.leaves[path].mask).any()


def test_bitdelta_keeps_every_sign(folder, family):
    assert pack("--method=bitdelta", names="a") == 0
    base, experts = family
    with bank.SwitchBank.open("tasks.swb") as opened:
        leaf = opened.get("a").leaves["stem/kernel"]
    change = experts["a"]["stem/kernel"] - base["stem/kernel"]
    np.testing.assert_array_equal(
        np.unpackbits(leaf.sign, count=change.size, bitorder="little"), change.ravel() > 0
    )
    assert leaf.knob == pytest.approx(np.abs(change).mean(), rel=1e-6)


def test_leaves_are_chosen_and_kept_in_full_by_their_paths(folder, family):
    base, experts = family
    words = ["--only=block/.*|head/.*", "--keep-dense=.*/bias"]
    assert pack(*words, names="b") == 0
    with bank.SwitchBank.open("tasks.swb") as opened:
        found = opened.get("b").leaves
    assert sorted(found) == ["block/bias", "block/kernel", "head/kernel"]
    np.testing.assert_array_equal(
        found["block/bias"].delta, experts["b"]["block/bias"] - base["block/bias"]
    )


def test_tasks_are_added_to_a_bank_and_replaced_in_it(folder):
    assert pack(names="a") == 0
    assert pack("--append", "--alpha=auto", names="bc") == 0
    with bank.SwitchBank.open("tasks.swb") as opened:
        assert opened.names == ("a", "b", "c")
        before = opened.get("a").leaves["stem/kernel"].mask.copy()
    assert pack("--append", "--overwrite", "--density=0.1", names="a") == 0
    with bank.SwitchBank.open("tasks.swb") as opened:
        assert sorted(opened.names) == ["a", "b", "c"]
        assert (opened.get("a").leaves["stem/kernel"].mask != before).any()
    assert pack("--overwrite", names="c") == 0
    with bank.SwitchBank.open("tasks.swb") as opened:
        assert opened.names == ("c",)


def test_a_dry_run_says_what_would_be_and_writes_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    assert pack("--dry-run", "--only=(?!low).*") == 0
    out = capsys.readouterr().out
    assert "alpha 0.6, knob l2_kept\na: a.safetensors\n" in out
    assert "switched     4 leaves: block/bias, block/kernel, high/scale, ... stem/kernel" in out
    assert "kept in full 1 leaf: scale" in out and "of its own   1 leaf: head/kernel" in out
    assert "must agree   1 leaf: steps" in out and "as the base: 1 leaf: low/kernel" in out
    assert sorted(folder.iterdir()) == before


def test_the_bar_counts_leaves(folder, monkeypatch):
    seen = []
    real = switch_pack.pack

    def watched(*call, progress, **keywords):
        return real(*call, progress=lambda *step: (seen.append(step), progress(*step)), **keywords)

    monkeypatch.setattr(switch_pack, "pack", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert pack() == 0
    assert seen[0] == (0, 16, "a: steps") and seen[-1] == (16, 16, "b")


def damaged(folder):
    data = bytearray((folder / "tasks.swb").read_bytes())
    data[100] ^= 1
    (folder / "tasks.swb").write_bytes(data)


def other_base(folder):
    flat, _ = load_safetensors(folder / "base.safetensors")
    flat["block/bias"] = flat["block/bias"] + 1
    files.write(folder, "other", flat)


def changed(name, **leaves):
    def change(folder):
        flat, _ = load_safetensors(folder / f"{name}.safetensors")
        for path, leaf in leaves.items():
            if leaf is None:
                del flat[path]
            else:
                flat[path] = leaf
        files.write(folder, name, flat)

    return change


BANK = "--out=tasks.swb"
NAN = np.full((12, 10), np.nan, np.float32)
PACK = ("pack", "--base=base.safetensors", "--expert=a=a.safetensors", "--out=new.swb")
APPLY = ("apply", "tasks.swb", "a", "--base=base.safetensors", "--out=new.safetensors")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (None, (), "no word is named, expected one of pack, apply, inspect, route"),
        (None, ("pakc",), "unknown word 'pakc' of 'sinewich switch' (did you mean 'pack'?)"),
        (
            None,
            ("pack",),
            "--base, --expert and --out are missing; 'sinewich switch pack --help' says more",
        ),
        (None, (*PACK, "--bse"), "unrecognized arguments: --bse"),
        (None, (*PACK, "--base=gone.npz"), "expected weights at gone.npz, found nothing"),
        (None, (*PACK, "--expert=b=gone.npz"), "expected weights at gone.npz, found nothing"),
        (None, (*PACK, "--expert=a=b.npz"), "--expert names 'a' twice"),
        (None, (*PACK, "--expert=b"), "--expert is 'b', expected NAME=PATH"),
        (None, (*PACK, "--expert=b@c=b.npz"), "the name of a task is 'b@c'"),
        (None, (*PACK, "--expert=b/c=b.npz"), "the name of a task is 'b/c'"),
        (None, (*PACK, "--expert=b\tc=b.npz"), "the name of a task is 'b\\tc'"),
        (None, (*PACK, "--alpha=1.2"), "alpha is 1.2; expected the fraction that is dropped"),
        (None, (*PACK, "--alpha=much"), "--alpha is 'much', expected a number"),
        (None, (*PACK, "--density=auto"), "--density is 'auto', expected a number"),
        (None, (*PACK, "--density=0"), "density is 0.0; expected the fraction that is kept"),
        (None, (*PACK, "--alpha=.6", "--density=.4"), "both alpha, the fraction dropped, and"),
        (None, (*PACK, "--knob=l3"), "knob is 'l3'; expected one of 'l2_kept'"),
        (None, (*PACK, "--method=bitdelt"), "'bitdelt' (did you mean 'bitdelta'?)"),
        (None, (*PACK, "--method=bitdelta", "--alpha=.6"), "'bitdelta' has an alpha and a knob"),
        (None, (*PACK, "--scope=row"), "scope is 'row'; expected one of"),
        (None, (*PACK, "--scope=global", "--alpha=auto"), "scope='global' has one threshold"),
        (None, (*PACK, "--only=("), "--only '(' is no regular expression"),
        (None, (*PACK, "--only=x"), "no leaf is left to pack of the 7 in base.safetensors"),
        (None, (*PACK, "--stats=b=b.safetensors"), "statistics of 'b', which is no expert"),
        (None, (*PACK, "--stats=a=b.safetensors"), "curvature of 'block/bias' of the expert 'a'"),
        (None, (*PACK, "--out=tasks.swb"), "tasks.swb exists already; add tasks to it with --app"),
        (None, (*PACK, "--append"), "there is no bank new.swb to append to"),
        (None, (*PACK, "--append", "--out=tasks.swb"), "tasks.swb has a task 'a' already"),
        (None, (*PACK, "--append", "--out=a.safetensors"), "a.safetensors"),
        (
            other_base,
            ("pack", "--base=other.safetensors", "--expert=c=c.safetensors", "--append", BANK),
            "the bank tasks.swb holds switches of another base: it names sha256:",
        ),
        (
            changed("a", **{"block/kernel": None}),
            PACK,
            "the expert 'a' (a.safetensors) lacks leaves of base.safetensors, 1 of 7, the first is "
            "'block/kernel'",
        ),
        (
            changed("a", **{"block/kernel": np.ones((12, 9), np.float32)}),
            PACK,
            "the leaf 'block/kernel' has shape (12, 9) in the expert 'a' (a.safetensors) and "
            "(12, 10) in base.safetensors",
        ),
        (
            changed("a", **{"steps": np.array(8, np.int32)}),
            PACK,
            "the leaf 'steps' holds int32 values that differ between the expert 'a'",
        ),
        (
            changed("a", **{"block/kernel": NAN}),
            PACK,
            "the leaf 'block/kernel' of the expert 'a' (a.safetensors), or its change from the "
            "base, is not finite",
        ),
        (
            changed("a", **{"head/kernel": NAN}),
            PACK,
            "the leaf 'head/kernel' of the expert 'a'",
        ),
        (damaged, (*PACK, "--append", "--out=tasks.swb"), "tasks.swb"),
        (None, (*APPLY[:2], "d", *APPLY[3:]), "the bank tasks.swb has no task 'd'"),
        (other_base, (*APPLY, "--base=other.safetensors"), "tasks.swb holds switches of another"),
        (None, (*APPLY, "--base=gone.npz"), "expected weights at gone.npz, found nothing"),
        (None, ("apply", "gone.swb", *APPLY[2:]), "expected a file of switches at gone.swb"),
        (
            None,
            ("apply", "tasks.swb", "a"),
            "--base and --out are missing; 'sinewich switch apply --help' says more",
        ),
        (None, (*APPLY, "--out=a.safetensors"), "a.safetensors exists already"),
        (None, (*APPLY, "--weight=heavy"), "--weight is 'heavy', expected a number"),
        (None, (*APPLY, "--weight=inf"), "the weight of 'a' is inf, expected a finite number"),
        (
            None,
            (*APPLY[:2], "a=1e39", *APPLY[3:]),
            "is 1e+39, expected a finite number that f",
        ),
        (None, (*APPLY, "--base=gone.npz", "--weight=-1e39"), "the weight of 'a' is -1e+39"),
        (None, (*APPLY, "--out=new.npz"), "new.npz would hold safetensors, whatever"),
        (None, (*APPLY, "--out=new"), "new would hold safetensors, whatever its"),
        (None, (*APPLY[:2], "a=1", "b", *APPLY[3:]), "no weight of 'b'; a mixture needs TASK="),
        (None, (*APPLY[:2], "a=1", "b=1", "--weight=2", *APPLY[3:]), "--weight is for a single"),
        (None, (*APPLY[:2], "a=1", "a=2", *APPLY[3:]), "the task 'a' is named twice"),
        (damaged, APPLY, "tasks.swb"),
        (damaged, ("inspect", "tasks.swb"), "tasks.swb"),
        (None, ("inspect", "base.safetensors"), "base.safetensors"),
        (None, ("inspect", "gone.swb"), "expected a file of switches at gone.swb, found nothing"),
        (None, ("route", "tasks.swb"), "--base is missing; 'sinewich switch route --help' says"),
    ],
)
def test_what_is_refused_in_one_line_and_leaves_nothing(
    folder, change, words, message, capsys, monkeypatch
):
    assert pack(out="tasks.swb") == 0
    if change is not None:
        change(folder)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    assert main(["switch", *words]) == 2
    assert message in error(capsys)
    assert {path: path.read_bytes() for path in sorted(folder.iterdir())} == before


def links(folder):
    """Files under other names."""
    (folder / "link.safetensors").symlink_to("base.safetensors")
    (folder / "hard.safetensors").hardlink_to("a.safetensors")
    (folder / "bank.safetensors").symlink_to("tasks.swb")
    (folder / "shards").mkdir()
    (folder / "base.safetensors").rename(folder / "shards" / "base.safetensors")
    (folder / "base.safetensors").symlink_to("shards/base.safetensors")


OVER = "--overwrite"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*APPLY, "--out=base.safetensors"), "base.safetensors would replace the base (base.safe"),
        ((*APPLY, "--out=tasks.swb"), "tasks.swb would replace the bank (tasks.swb)"),
        ((*APPLY, "--out=link.safetensors"), "link.safetensors would replace the base (base.sa"),
        (
            (*APPLY, "--out=shards/base.safetensors"),
            "shards/base.safetensors would replace",
        ),
        ((*APPLY, "--out=bank.safetensors"), "bank.safetensors would replace the bank (tasks.s"),
        (
            (*APPLY, "--base=shards", "--out=base.safetensors"),
            "base.safetensors lies in shards",
        ),
        (
            (*APPLY, "--base=shards", "--out=shards/x/new.safetensors"),
            "shards/x/new.safetensors lies in shards, which is the base",
        ),
        ((*PACK, "--out=base.safetensors"), "base.safetensors would replace the base (base.safe"),
        ((*PACK, "--out=hard.safetensors"), "hard.safetensors would replace the expert 'a' (a"),
        ((*PACK, "--out=a.safetensors", "--dry-run"), "a.safetensors would replace the expert"),
        (
            (*PACK, "--stats=a=b.safetensors", "--out=b.safetensors"),
            "would replace the statistics",
        ),
        ((*PACK, "--out=c.safetensors"), "c.safetensors is no switch bank, and --overwrite repla"),
        ((*PACK, "--expert=b=gone.npz", "--out=c.safetensors"), "c.safetensors is no switch bank"),
    ],
)
def test_no_input_is_written_over(folder, words, message, capsys):
    assert pack() == 0
    links(folder)
    capsys.readouterr()
    before = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert main(["switch", *words, OVER]) == 2
    assert message in error(capsys)
    assert {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()} == before


def test_no_input_is_written_over_from_python(folder):
    assert pack() == 0
    with (
        switch_leaves.opened_bank("tasks.swb", {"a": 1.0}, "base.safetensors") as source,
        pytest.raises(ConfigError, match="would replace the base"),
    ):
        switch_leaves.write(source, "base.safetensors", overwrite=True)
    with (
        switch_plan.planned("base.safetensors", {"a": "a.safetensors"}) as plan,
        pytest.raises(ConfigError, match="would replace the expert 'a'"),
    ):
        switch_pack.pack(plan, "a.safetensors", {}, overwrite=True)


def test_what_was_written_before_is_written_over(folder):
    """A damaged bank too, and an empty file."""
    assert pack() == 0
    words = ["switch", "apply", "tasks.swb", "a", "--base=base.safetensors", "--out=x.safetensors"]
    assert main(words) == 0
    assert main([*words, OVER]) == 0
    damaged(folder)
    assert pack(OVER) == 0
    (folder / "empty.swb").touch()
    assert pack(OVER, out="empty.swb") == 0
    with bank.SwitchBank.open("tasks.swb") as opened:
        opened.verify()


def test_a_weight_that_is_too_large_for_a_leaf_is_refused_without_warnings(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    leaf = np.linspace(-1, 1, 64, dtype=np.float16).reshape(8, 8)
    files.write(tmp_path, "base", {"w": leaf})
    for name in "ab":
        files.write(tmp_path, name, {"w": leaf**3})
    assert pack() == 0
    capsys.readouterr()
    words = ["switch", "apply", "tasks.swb", "--base=base.safetensors", "--out=x.safetensors"]
    for tasks in (["a=1e9"], ["a=1e9", "b=3e38"]):
        assert main([*words, *tasks]) == 2
        assert "not finite of the leaf 'w', stored as float16; choose smaller" in error(capsys)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_single_leaf_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leaf = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    files.write(tmp_path, "base", {"w": leaf})
    files.write(tmp_path, "a", {"w": leaf**3})
    assert pack(names="a") == 0
    words = ["switch", "apply", "tasks.swb", "a", "--base=base.safetensors", "--out=x.safetensors"]
    assert main(words) == 0
    assert "\n1 leaf of base.safetensors + 1 x a\n" in capsys.readouterr().out


def test_tasks_are_added_to_a_bank_that_was_made_in_python(folder, family, capsys):
    base, experts = family
    switch, _ = expected(base, experts["a"])
    with bank.SwitchBank.create("tasks.swb", base=base) as opened:
        opened.add("a", switch, meta={"options": "mine"})
    assert pack("--append", names="b") == 0
    assert main(["switch", "inspect", "tasks.swb"]) == 0
    with bank.SwitchBank.open("tasks.swb", mode="a") as opened:
        opened.add("c", switch, meta={"facts": {"frequencies": "no JSON"}})
    capsys.readouterr()
    assert pack("--append", "--overwrite", names="b") == 2
    assert "the task 'c' of tasks.swb says in another form" in error(capsys)


def test_a_bank_without_a_base_is_not_applied(folder, family, capsys):
    base, experts = family
    with bank.SwitchBank.create("tasks.swb") as opened:
        opened.add("a", expected(base, experts["a"])[0])
    words = ["switch", "apply", "tasks.swb", "a", "--base=base.safetensors", "--out=x.safetensors"]
    assert main(words) == 2
    assert "tasks.swb does not say which base it belongs to" in error(capsys)


def test_a_bank_whose_writer_was_killed_is_read_up_to_there(folder, capsys):
    assert pack() == 0
    with open("tasks.swb", "ab") as file:
        file.write(b"\0" * 77)
    capsys.readouterr()
    assert main(["switch", "inspect", "tasks.swb", "--verify"]) == 0
    out, err = capsys.readouterr()
    assert "verified: every checksum holds" in out and "77 bytes behind the last commit" in err
    assert pack("--append", names="c") == 0
    assert main(["switch", "inspect", "tasks.swb"]) == 0
    assert "behind the last" not in capsys.readouterr().err


def test_inspect_says_the_bytes_beside_the_entropy_bound(folder, capsys):
    assert pack() == 0
    capsys.readouterr()
    assert main(["switch", "inspect", "tasks.swb"]) == 0
    out = capsys.readouterr().out
    assert "\na: alpha 0.6, knob l2_kept, from a.safetensors\n" in out
    assert "block/kernel" not in out
    assert main(["switch", "inspect", "tasks.swb", "--leaves"]) == 0
    assert "  block/kernel" in capsys.readouterr().out
    assert main(["switch", "inspect", "tasks.swb", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["tasks"]] == ["a", "b"]
    assert found["nbytes"] == (folder / "tasks.swb").stat().st_size
    assert found["router"] is None and not found["verified"] and "leaves" not in found


@pytest.mark.parametrize("words", [["inspect"], ["inspect", "--verify", "--json"]])
def test_inspect_starts_without_jax(folder, words):
    assert pack() == 0
    program = (
        "import sys\nfrom sinewich_jax.cli import main\n"
        "assert main(['switch', *sys.argv[1:], 'tasks.swb']) == 0\n"
        "heavy = {'jax', 'orbax', 'flax', 'rich', 'scipy', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_inspect_answers_in_half_a_second(folder):
    """Of the processor's time, the least of some calls: the machine may do other things."""
    assert pack() == 0
    command = [sys.executable, "-m", "sinewich_jax", "switch", "inspect", "tasks.swb"]
    taken = []
    for _ in range(4):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        after = os.times()
        taken.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert min(taken) < 0.5, taken


def test_files_are_packed_and_applied_without_jax(folder):
    program = (
        "import sys\nfrom sinewich_jax.cli import main\n"
        "pack = ['switch', 'pack', '--base=base.safetensors', '--expert=a=a.safetensors']\n"
        "assert main([*pack, '--out=t.swb']) == 0\n"
        "words = ['switch', 'apply', 't.swb', 'a', '--base=base.safetensors']\n"
        "assert main([*words, '--out=x.safetensors']) == 0\n"
        "heavy = {'jax', 'orbax', 'flax', 'rich', 'scipy', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["pack", "apply", "inspect", "route", "evaluate"])
def test_each_word_has_help(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["switch", word, "--help"])
    assert stopped.value.code == 0
    assert f"usage: sinewich switch {word}" in capsys.readouterr().out
