"""Merging files: the bits of a merge in memory; when something is wrong, nothing half-written."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from sinewich_jax import merging
from sinewich_jax.core.trees import unflatten_paths
from sinewich_jax.errors import CheckpointError, ConfigError, SinewichError
from sinewich_jax.merging import stream
from sinewich_jax.storage import fingerprint, load_safetensors, save_safetensors
from tests.merging import files

RULES = [rule for rule in merging.rules() if rule.streaming and "data" not in rule.needs]
# As they are, and over the whole model where they can: then they pass over the files several times.
CASES = [pytest.param(rule, {}, id=rule.name) for rule in RULES] + [
    pytest.param(rule, {"scope": "global"}, id=f"{rule.name}-global")
    for rule in RULES
    if rule.options.get("scope") == "leaf"
]


def written(report: stream.Report) -> dict[str, files.Flat]:
    return {path.stem: load_safetensors(path)[0] for path in report.outputs}


@pytest.fixture
def four(tmp_path):
    """A base, three experts, and a call that merges their files into ``tmp_path / "out"``."""
    base, experts = files.family()

    def merge(rule="average", **keywords):
        folder = tmp_path / "in"
        paths = {name: files.write(folder, name, flat) for name, flat in experts.items()}
        origin = files.write(folder, "base", base)
        return stream.merge_files(rule, origin, paths, tmp_path / "out", **keywords)

    merge.base, merge.experts, merge.out = base, experts, tmp_path / "out"
    return merge


# --- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", files.FORMATS)
@pytest.mark.parametrize(("rule", "options"), CASES)
def test_every_rule_gives_the_bits_of_a_merge_in_memory(rule, options, kind, tmp_path):
    base, experts = files.family(narrow=kind != "npz")
    stats = files.statistics(rule, base)
    paths = {name: files.write(tmp_path, name, flat, kind) for name, flat in experts.items()}
    report = stream.merge_files(
        rule.name,
        files.write(tmp_path, "base", base, kind),
        paths,
        tmp_path / "out",
        stats=stats
        and {n: files.write(tmp_path, f"{n}-stats", f, "safetensors") for n, f in stats.items()},
        **options,
    )
    expected = files.in_memory(rule, base, experts, stats, **options)
    found = written(report)
    assert found.keys() == expected.keys()
    for name in expected:
        files.same(found[name], expected[name])


@pytest.mark.parametrize("rule", ["ties", "dare"])
def test_the_order_of_leaves_in_the_files_does_not_matter(rule, four, tmp_path):
    plain = written(four(rule))["merged"]

    def shuffled(name: str, flat: files.Flat, seed: int):
        order = np.random.default_rng(seed).permutation(sorted(flat))
        return files.write_raw(tmp_path / f"{name}.safetensors", {n: flat[n] for n in order})

    paths = {name: shuffled(name, flat, i) for i, (name, flat) in enumerate(four.experts.items())}
    origin = shuffled("base", four.base, 9)
    found = stream.merge_files(rule, origin, paths, tmp_path / "shuffled")
    files.same(written(found)["merged"], plain)


def test_options_reach_the_rule_and_the_record(four):
    report = four("task_arithmetic", scale=0.5)
    record = json.loads((four.out / "merge.json").read_text())
    assert record == report.record
    assert record["options"]["scale"] == 0.5
    assert record["merged"] == sorted(set(four.base) - {"steps"})
    assert record["same"] == ["steps"]
    assert record["base"]["fingerprint"] == fingerprint.fingerprint(four.base)
    assert record["experts"]["b"]["fingerprint"] == fingerprint.fingerprint(four.experts["b"])
    assert record["outputs"] == ["merged.safetensors"]


def test_the_same_merge_leaves_the_same_files(four):
    four("ties")
    first = {path.name: path.read_bytes() for path in four.out.iterdir()}
    four("ties", overwrite=True)
    assert first == {path.name: path.read_bytes() for path in four.out.iterdir()}


@pytest.mark.slow
def test_runs_are_merged_with_the_curvature_that_they_kept(tmp_path):
    from sinewich_jax import storage

    base, experts = files.family()
    rule = find("curvature_average")
    stats = files.statistics(rule, base)
    frozen = {"stem/kernel": base.pop("stem/kernel")}
    for name, flat in {"base": base, **experts}.items():
        flat.pop("stem/kernel", None)
        mark = storage.save_base(tmp_path / name / "base", {"params": frozen})
        items = {"params": flat, "meta": {"base": mark}}
        if name != "base":
            items["merge"] = stats[name]
        with storage.CheckpointStore(tmp_path / name / "checkpoints") as store:
            store.save(10, {key: unflatten_paths(tree) for key, tree in items.items()})
    paths = {name: tmp_path / name for name in experts}
    start = tmp_path / "base" / "checkpoints" / "10"
    report = stream.merge_files(rule.name, start, paths, tmp_path / "out")
    whole = {name: flat | frozen for name, flat in experts.items()}
    expected = files.in_memory(rule, base | frozen, whole, stats)["merged"]
    files.same(written(report)["merged"], expected)
    assert report.record["experts"]["a"]["step"] == "10"
    # One that froze other parameters is not of the same family.
    mark = storage.save_base(tmp_path / "c" / "base", {"params": {"stem/kernel": np.ones((9, 4))}})
    with storage.CheckpointStore(tmp_path / "c" / "checkpoints") as store:
        store.save(11, {"params": unflatten_paths(experts["c"]), "meta": {"base": mark}})
    with pytest.raises(SinewichError, match=r"'c' .* was trained on another frozen base than"):
        stream.merge_files("average", start, paths, tmp_path / "new", keep="stem/.*")
    assert not (tmp_path / "new").exists()


# --- what stays ---------------------------------------------------------------------------------


def test_heads_stay_with_each_task(four):
    four.base["head/old"] = np.ones(2, np.float32)
    for size, expert in enumerate(four.experts.values(), start=1):
        expert["head/kernel"] = np.full((4, size), size, np.float32)
    report = four(keep="head/.*")
    found = written(report)
    assert found.keys() == {"merged", *files.NAMES}
    assert found["merged"].keys() == four.base.keys()
    assert found["merged"]["head/old"].tolist() == [1, 1]
    for size, name in enumerate(files.NAMES, start=1):
        files.same(found[name], {"head/kernel": np.full((4, size), size, np.float32)})
    assert report.record["per_task"] == {name: ["head/kernel"] for name in files.NAMES}


def test_only_some_leaves_are_merged(four):
    report = four(only="block/.*")
    assert report.plan.merged == ("block/bias", "block/kernel")
    found = written(report)["merged"]
    expected = files.in_memory(find("average"), four.base, four.experts, None)["merged"]
    for name, leaf in four.base.items():
        np.testing.assert_array_equal(
            found[name], expected[name] if name.startswith("block/") else leaf
        )


def find(name: str) -> merging.Rule:
    return next(rule for rule in merging.rules() if rule.name == name)


def test_a_conditional_rule_writes_a_model_a_task(four, monkeypatch):
    from sinewich_jax.merging import registry

    merging.rules()
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @merging.register("signs", source="a test of 2026", conditional=True)
    def signs(leaf):
        """The mean change where it has the sign of the task's."""
        mean = sum(leaf.deltas) / len(leaf.deltas)
        masks = tuple(delta * mean > 0 for delta in leaf.deltas)
        return merging.Conditional(leaf.base, mean, masks, (1.0, 2.0, 3.0))

    for expert in four.experts.values():
        expert["head"] = np.ones(3, np.float32)
    found = written(four("signs", keep="head"))
    for expert in four.experts.values():
        del expert["head"]
    expected = files.in_memory(find("signs"), four.base, four.experts, None)
    assert found.keys() == expected.keys()
    for name in expected:
        files.same(found[name], expected[name] | {"head": np.ones(3, np.float32)})


# --- bad input: one sentence, and nothing is written --------------------------------------------


def rename(flat):
    flat["blok/bias"] = flat.pop("block/bias")


def change(**leaves):
    return lambda flat: flat.update(
        {name.replace("__", "/"): leaf for name, leaf in leaves.items()}
    )


NAN = np.full((12, 10), np.nan, np.float32)
BAD = {
    "keys": (rename, "the expert 'b' .* lacks 'block/bias'.*'keep' takes a regular"),
    "shape": (
        change(block__bias=np.ones(3, np.float32)),
        r"leaf 'block/bias' has shape \(3,\) in the expert 'b' .* and \(10,\) in the base",
    ),
    "kind": (change(block__bias=np.ones(10, np.int32)), "'block/bias' is int32 in the expert 'b'"),
    "integers": (change(steps=np.array(8, np.int32)), "'steps' holds int32 values that differ"),
    "nan": (change(block__kernel=NAN), "'block/kernel' holds NaN or infinity in the expert 'b'"),
}


@pytest.mark.parametrize("case", BAD)
def test_experts_that_do_not_fit_are_named(case, four):
    spoil, message = BAD[case]
    spoil(four.experts["b"])
    with pytest.raises(SinewichError, match=message):
        four()
    assert not four.out.exists()


def test_a_rule_that_ends_in_infinity_writes_nothing(four):
    four.experts["b"]["stem/kernel"] = four.base["stem/kernel"] + np.float32(10)
    message = "'task_arithmetic' makes numbers that are not finite of the leaf 'stem/kernel'"
    with np.errstate(over="ignore"), pytest.raises(SinewichError, match=message):
        four("task_arithmetic", scale=1e38)
    assert not four.out.exists()


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_leaf_that_cannot_be_read_in_the_middle(kind, tmp_path):
    base, experts = files.family(narrow=False)
    for flat in (base, *experts.values()):
        flat["stem/kernel"] = np.arange(40_000, dtype=np.float32)
    paths = {name: files.write(tmp_path, name, flat, kind) for name, flat in experts.items()}
    origin = files.write(tmp_path, "base", base, kind)
    seen = []

    def spoil(done: int, total: int, path: str) -> None:
        seen.append(done)
        if kind == "safetensors" and done == 1:
            os.truncate(paths["b"], paths["b"].stat().st_size - 200)

    if kind == "npz":
        content = bytearray(paths["b"].read_bytes())
        content[content.index(experts["b"]["stem/kernel"].tobytes()) + 5] ^= 1
        paths["b"].write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"the leaf '\S+' of .*b\.{kind} "):
        stream.merge_files("average", origin, paths, tmp_path / "new" / "out", progress=spoil)
    assert max(seen) >= 1, "some leaves were merged before"
    assert not (tmp_path / "new").exists()


def test_an_interrupted_merge_leaves_nothing(four):
    def interrupt(done: int, total: int, path: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        four("ties", progress=interrupt)
    assert not four.out.exists()


def test_a_full_disk_leaves_nothing(four, monkeypatch):
    import errno

    from sinewich_jax.storage import leaf_writer

    real = os.pwrite

    def full(descriptor, data, offset):
        if offset > 600:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    monkeypatch.setattr(leaf_writer.os, "pwrite", full)
    with pytest.raises(CheckpointError, match=r"no space left while writing .*merged.safetensors"):
        four()
    assert not four.out.exists()


def test_experts_of_another_base(tmp_path):
    base, experts = files.family()
    other, _ = files.family(seed=5)
    mark = fingerprint.fingerprint
    paths = {}
    for name, origin in (("a", base), ("b", other)):
        paths[name] = tmp_path / f"{name}.safetensors"
        save_safetensors(paths[name], experts[name], {"base_fingerprint": mark(origin)})
    origin = files.write(tmp_path, "base", base)
    with pytest.raises(SinewichError, match=r"the expert 'b' \(.*\) was trained from another base"):
        stream.merge_files("average", origin, paths, tmp_path / "out")
    for name, frozen in (("a", "sha256:1"), ("b", "sha256:2")):
        save_safetensors(paths[name], experts[name], {"base": frozen})
    with pytest.raises(SinewichError, match=r"'b' .* was trained on another frozen base than"):
        stream.merge_files("average", origin, paths, tmp_path / "out")


def test_experts_far_from_the_base_are_pointed_out(four):
    assert four().notes == ()
    four.experts["c"] = files.family(seed=5)[0]
    (note,) = four(overwrite=True).notes
    assert re.search(r"the expert 'c' has a cosine of -?0\.\d+ with the base", note)


def test_a_folder_in_use_is_left_alone(four):
    four.out.mkdir()
    (four.out / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds 'thesis.txt'\)"):
        four(overwrite=True)
    assert [path.name for path in four.out.iterdir()] == ["thesis.txt"]
    (four.out / "thesis.txt").unlink()
    four()
    before = (four.out / "merge.json").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a merge by 'average' already.*--overwrite"):
        four("task_arithmetic")
    assert (four.out / "merge.json").read_bytes() == before


def test_overwriting_takes_away_what_the_former_merge_left(four):
    four.experts["a"]["head"] = np.ones(3, np.float32)
    four(keep="head")
    assert {path.name for path in four.out.iterdir()} == {
        "a.safetensors",
        "merge.json",
        "merged.safetensors",
    }
    del four.experts["a"]["head"]
    four(overwrite=True)
    assert {path.name for path in four.out.iterdir()} == {"merge.json", "merged.safetensors"}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"keep": "("}, "keep='\\(' is no regular expression"),
        ({"only": "nothing"}, "no leaf is left to merge of the 6 in .*base.safetensors"),
        ({"stats": {"a": "x.npz"}}, "expected weights at x.npz, found nothing"),
        ({"stats": {"z": "x.npz"}}, "statistics of 'z', which is no expert"),
        ({"rule": "curvature_average"}, "needs the curvature of every expert and has none of 'a'"),
        ({"scael": 1}, "has no option 'scael'"),
    ],
)
def test_settings_that_cannot_be_used(keywords, message, four):
    with pytest.raises(SinewichError, match=message):
        four(**keywords)
    assert not four.out.exists()


def test_names_that_cannot_be_files(tmp_path):
    for name in ("../x", "merged", "a b", ""):
        with pytest.raises(ConfigError, match="cannot name an expert"):
            stream.merge_files("average", "base", {name: "x"}, tmp_path / "out")


def test_statistics_of_another_model(four, tmp_path):
    save_safetensors(tmp_path / "s.safetensors", {"other/row": np.ones(3, np.float32)})
    given = dict.fromkeys(files.NAMES, tmp_path / "s.safetensors")
    with pytest.raises(SinewichError, match=r"are of none of the leaves .* found 'other/row'"):
        four("curvature_average", stats=given)


def test_a_plan_reads_and_writes_nothing(four, tmp_path):
    four()
    paths = {name: tmp_path / "in" / f"{name}.safetensors" for name in files.NAMES}
    plan = stream.plan_files("ties", tmp_path / "in" / "base.safetensors", paths, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert plan.merged == tuple(sorted(set(four.base) - {"steps"}))
    assert plan.same == ("steps",)
    assert plan.bytes_written == sum(leaf.nbytes for leaf in four.base.values())
    assert plan.bytes_read == 4 * plan.bytes_written


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_that_of_a_few_leaves(tmp_path):
    from sinewich_jax.bench import process

    rng = np.random.default_rng(0)
    leaves, size = 24, 1_000_000
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", *"abcd")}
    for path in paths.values():
        flat = {f"leaf{i:02}": rng.standard_normal(size, np.float32) for i in range(leaves)}
        save_safetensors(path, flat)
    named = [f"--expert={name}={paths[name]}" for name in "abcd"]
    command = ["-m", "sinewich_jax", "merge", "ties", f"--base={paths['base']}", *named]
    cost = process.python([*command, f"--out={tmp_path / 'out'}"])
    total = 5 * leaves * size * 4 / 1e6
    assert cost.peak_rss_mb <= 3 * (4 + 2) * size * 4 / 1e6 + 200 < total
