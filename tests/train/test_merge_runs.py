"""Runs are merged as they lie there: with the curvature of their training, and their own heads."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from sinewich_jax import merging, storage, train
from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging import stream
from sinewich_jax.train import merge_compare
from tests.train import fake

EVERYTHING = ((".*", "trainable"),)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Work directories of runs from one start, ``other`` from another, and the start's backbone."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"a": {}, "b": {"learning_rate": 0.03, "batch_size": 16}, "other": {}}
    for name, keys in changes.items():
        made = fake.make_experiment(rules=EVERYTHING, seed=int(name == "other"))
        config = fake.make_config(steps=4, checkpoint_every=0, merge_stats_every=1, **keys)
        train.train(config, folder / name, made, devices=jax.devices()[:1])
    start = fake.make_experiment(rules=EVERYTHING).init()["params"]["backbone"]
    storage.save_safetensors(folder / "backbone.safetensors", start)
    return folder


def read(folder, item):
    with storage.open_leaves(folder, item=item) as source:
        flat = {name: source.read(name) for name in source.names}
    return {k.removeprefix("backbone/"): v for k, v in flat.items() if k.startswith("backbone/")}


def test_runs_merge_onto_the_backbone_that_they_started_from(runs, tmp_path):
    """By the names of the base, each curvature times its batch size, with nothing else asked."""
    experts = {name: runs / name for name in "ab"}
    base, out = runs / "backbone.safetensors", tmp_path / "out"
    report = stream.merge_files("curvature_average", base, experts, out)
    merged, _ = storage.load_safetensors(out / "merged.safetensors")
    stats = {
        name: merging.fisher_scale(trees.unflatten_paths(read(path, "merge")), size)
        for (name, path), size in zip(experts.items(), (8, 16), strict=True)
    }
    expected = merging.merge(
        "curvature_average",
        storage.load_safetensors(base)[0],
        {name: read(path, "params") for name, path in experts.items()},
        stats=stats,
    )
    assert merged.keys() == expected.keys() == {"kernel", "bias"}
    for path, leaf in expected.items():
        np.testing.assert_array_equal(merged[path], leaf, err_msg=path)
        assert np.abs(leaf - storage.load_safetensors(base)[0][path]).max() > 0
    heads, _ = storage.load_safetensors(out / "b.safetensors")
    assert "out_depth/kernel" in heads and "omega" in heads and "kernel" not in heads
    assert "out_depth/kernel" in report.plan.per_task["a"]


def test_a_run_as_base_stands_for_what_it_started_from(runs, tmp_path):
    """Adapters have no other base; the names are then those of the runs."""
    experts = {name: runs / name for name in "ab"}
    stream.merge_files("task_arithmetic", runs / "a", experts, tmp_path / "out", scale=0.5)
    merged, _ = storage.load_safetensors(tmp_path / "out" / "merged.safetensors")
    with storage.open_leaves(runs / "a", item="start") as source:
        start = {name: source.read(name) for name in source.names}
    assert merged.keys() == start.keys() == {"backbone/kernel", "backbone/bias"}
    for path, leaf in start.items():
        changes = [read(runs / n, "params")[path.removeprefix("backbone/")] - leaf for n in "ab"]
        np.testing.assert_allclose(merged[path], leaf + 0.5 * sum(changes), rtol=1e-6, atol=1e-7)
        assert all(np.abs(change).max() > 0 for change in changes)


def test_all_rules_are_compared_on_the_runs_own_data(runs, tmp_path):
    experts = {name: runs / name for name in "ab"}
    experiments = {name: fake.make_experiment(rules=EVERYTHING) for name in experts}
    found = merge_compare.compare(runs / "a", experts, experiments=experiments)
    assert len(found.columns) == 2 * len(fake.TASKS)
    tried = {rule.name for rule in merging.rules()} - {"adamerging", "fisher", "regmean"}
    assert found.rows.keys() == {merge_compare.EXPERTS, *tried}
    assert found.left_out.keys() == {"adamerging", "fisher", "regmean"}
    assert found.delta_m[merge_compare.EXPERTS] == 0
    results = json.loads((runs / "b" / "results.json").read_text(encoding="utf-8"))
    value = results["tasks"]["depth"]["value"]
    assert found.rows[merge_compare.EXPERTS]["b: depth"] == pytest.approx(value, rel=1e-5)
    # One expert alone, merged with itself, is what it was.
    alone = {name: runs / "a" for name in "ab"}
    same = merge_compare.compare(runs / "a", alone, rules=["average"], experiments=experiments)
    assert same.rows["average"] == same.rows[merge_compare.EXPERTS]
    merge_compare.write(found, tmp_path)
    assert "| the experts" in (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert (tmp_path / "compare.png").is_file()
    with pytest.raises(ConfigError, match="'adamerging' learns from data"):
        merge_compare.compare(runs / "a", experts, rules=["adamerging"], experiments=experiments)


def test_runs_of_another_start_are_refused(runs, tmp_path):
    with pytest.raises(SinewichError, match="'a' and 'other' started from other weights"):
        stream.merge_files(
            "average",
            runs / "backbone.safetensors",
            {"a": runs / "a", "other": runs / "other"},
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_factors_that_are_read_at_other_frequencies_are_refused(tmp_path):
    flat = {"stage0_block1/fc1/task/up": np.ones((2, 2), np.float32)}
    paths = {}
    for name, omega in (("base", None), ("a", [0.6, 1.4]), ("b", [0.6, 1.4]), ("c", [0.6, 1.3])):
        facts = {}
        if omega is not None:
            facts = {"frequencies": {"stage0/fc1": omega}, "sine_factors": list(flat)}
            facts = {key: json.dumps(fact) for key, fact in facts.items()}
        paths[name] = tmp_path / f"{name}.safetensors"
        storage.save_safetensors(paths[name], flat, facts)
    base = paths.pop("base")
    equal = {name: paths[name] for name in "ab"}
    stream.merge_files("average", base, equal, tmp_path / "equal")
    with pytest.raises(SinewichError, match=r"'a' and 'c' read .* 0\.6, 1\.4 and 0\.6, 1\.3"):
        stream.merge_files("average", base, paths, tmp_path / "out")
