"""Tasks of runs with adapters merge as the kernels that these make, like exported files."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json

import numpy as np
import pytest

from sinewich_jax import cli, convert, storage
from sinewich_jax.convert import task_weights
from sinewich_jax.errors import ConfigError, SinewichError
from sinewich_jax.merging import stream
from sinewich_jax.train import merge_compare, merge_tasks, trained
from tests.train import fake
from tests.train.runs import CONFIG, save_run

BASE = importlib.resources.files("sinewich_jax.nn") / "weights" / "tiny.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one start that ended at other frequencies, and one with adapters of its own."""
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "one", CONFIG)
    save_run(folder / "two", CONFIG, noise=1)
    save_run(folder / "seed", dataclasses.replace(CONFIG, seed=1), noise=2)
    return folder


def merge(rule, base, experts, out, *words):
    named = [f"--expert={name}={path}" for name, path in experts.items()]
    return cli.main(["merge", rule, f"--base={base}", *named, f"--out={out}", *words])


def error(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def exported(workdir, task, path):
    """What ``sinewich export`` writes, under the names of the base; and the task's branches."""
    made = trained.read_trained(workdir)
    folded = convert.fold_task(made.experiment.model, made.variables, task)
    convert.save_folded(path, folded)
    folded = convert.read_folded(path)
    storage.save_safetensors(path, folded.params)
    return path, folded.branches


@pytest.mark.slow
def test_tasks_merge_as_the_files_that_export_writes(runs, tmp_path, capsys):
    """Frequencies, and even seeds, may differ; what the base has no place for stays with a task."""
    experts = {"semseg": runs / "one", "x": f"{runs / 'two'}@semseg", "depth": runs / "seed"}
    assert merge("ties", BASE, experts, tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert f"note: {runs / 'seed'}@depth: adapters are merged as the kernels that they make" in err
    assert "factors" not in err
    tasks = {"semseg": ("one", "semseg"), "x": ("two", "semseg"), "depth": ("seed", "depth")}
    files, branches = {}, {}
    for name, (run, task) in tasks.items():
        path = tmp_path / f"{name}.safetensors"
        files[name], branches[name] = exported(runs / run, task, path)
    report = stream.merge_files("ties", BASE, files, tmp_path / "expected")
    assert report.plan.merged == tuple(storage.load_safetensors(BASE)[0])
    expected, _ = storage.load_safetensors(tmp_path / "expected" / "merged.safetensors")
    merged, _ = storage.load_safetensors(tmp_path / "out" / "merged.safetensors")
    assert merged.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(merged[path], leaf, err_msg=path)
    for name, own in branches.items():
        kept, _ = storage.load_safetensors(tmp_path / "out" / f"{name}.safetensors")
        assert len(own) == 12 and own.keys() < kept.keys()
        assert all(path.startswith(("decoder/", "clock/")) for path in kept.keys() - own.keys())
        for path, leaf in own.items():
            np.testing.assert_array_equal(kept[path], leaf, err_msg=path)
    record = json.loads((tmp_path / "out" / "merge.json").read_bytes())
    assert record["experts"]["depth"]["task"] == "depth"
    assert record["experts"]["x"]["path"] == f"{runs / 'two'}@semseg"


def test_other_frequencies_are_refused_for_factors(runs, tmp_path, capsys):
    experts = {"a": runs / "one", "b": runs / "two"}
    assert merge("average", runs / "one", experts, tmp_path / "out") == 2
    message = error(capsys)
    assert "'a' and 'b' read the factors of their task kernels at other frequencies" in message
    assert "--expert NAME=WORKDIR@TASK" in message


@pytest.mark.slow
def test_a_run_and_its_base_alone_take_the_same_merged_kernels(runs, tmp_path):
    tasks = {"a": f"{runs / 'one'}@depth", "b": f"{runs / 'two'}@depth"}
    assert merge("average", runs / "one", tasks, tmp_path / "run") == 0
    assert merge("average", BASE, tasks, tmp_path / "file") == 0
    flat, _ = storage.load_safetensors(tmp_path / "file" / "merged.safetensors")
    same, _ = storage.load_safetensors(tmp_path / "run" / "merged.safetensors")
    assert flat.keys() == same.keys() == storage.load_safetensors(BASE)[0].keys()
    assert all(np.array_equal(leaf, same[path]) for path, leaf in flat.items())


def test_factors_of_equal_frequencies_merge_and_are_called_so(runs, tmp_path, capsys):
    experts = {"a": runs / "one", "b": runs / "one"}
    assert merge("average", runs / "one", experts, tmp_path / "out", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "backbone/merge0" in out and "/lora_down" not in err
    assert "leaves are factors of adapters and are merged as such" in err


def test_a_dry_run_says_that_kernels_are_merged_and_what_stays(runs, tmp_path, capsys):
    experts = {name: runs / "one" for name in CONFIG.tasks}
    assert merge("average", BASE, experts, tmp_path / "out", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "merged       " in out and "stays with depth: " in out and "stage2/fc2/kernel" in out
    assert f"note: {runs / 'one'}@depth: adapters are merged as the kernels" in err


def test_a_task_must_be_one_of_the_run(runs, tmp_path, capsys):
    plain = tmp_path / "plain"
    save_run(plain, fake.make_config(), fake.make_experiment(rules=((".*", "trainable"),)))
    one = runs / "one"
    for expert, message in (
        (f"a={one}", f"{one} has no task 'a', only semseg, depth; choose by --expert NAME={one}@"),
        (f"a={one}@dpeth", "has no task 'dpeth', only semseg, depth; choose"),
        (f"a={plain}@depth", f"{plain} has no adapters"),
        (f"a={BASE}@depth", f"expected weights at {BASE}@depth, or WORKDIR@TASK"),
        (f"a={one}@", f"expected weights at {one}@, or WORKDIR@TASK"),
    ):
        words = ["merge", "average", f"--base={BASE}", f"--expert=depth={one}", "--expert", expert]
        assert cli.main([*words, f"--out={tmp_path / 'out'}"]) == 2
        assert message in error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_backbone_is_refused(runs, tmp_path, capsys):
    flat, _ = storage.load_safetensors(BASE)
    flat["merge0/norm/bias"] = flat["merge0/norm/bias"] + 1
    storage.save_safetensors(tmp_path / "other.safetensors", flat)
    experts = {name: runs / "one" for name in CONFIG.tasks}
    assert merge("average", tmp_path / "other.safetensors", experts, tmp_path / "out") == 2
    assert f"'semseg' ({runs / 'one'}@semseg) was trained from another base" in error(capsys)
    assert not (tmp_path / "out").exists()


def test_the_curvature_of_factors_is_none_of_kernels(runs, tmp_path, capsys):
    experts = {name: runs / "one" for name in CONFIG.tasks}
    assert merge("curvature_average", BASE, experts, tmp_path / "out") == 2
    assert "a run keeps the curvature of its factors, and kernels have another; pass --stats" in (
        error(capsys)
    )
    flat, _ = storage.load_safetensors(BASE)
    stats = {f"{path}/diag": np.ones_like(leaf) for path, leaf in flat.items()}
    storage.save_safetensors(tmp_path / "stats.safetensors", stats)
    words = [f"--stats={name}={tmp_path / 'stats.safetensors'}" for name in experts]
    assert merge("curvature_average", BASE, experts, tmp_path / "out", *words) == 0


def test_adapters_that_make_no_kernels_are_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(task_weights, "obstacle", lambda model: "the backbone is a Tree")
    with pytest.raises(ConfigError, match=r"a Tree, so that task 'depth' of .* as --base"):
        merge_tasks.open_task(runs / "one", "depth")


def test_from_python_with_a_task_that_is_open(runs, tmp_path):
    """The caller's source stays open, and merges in memory as its leaves do."""
    with merge_tasks.open_task(runs / "one", "depth") as depth:
        experts = {"depth": depth, "same": depth}
        stream.merge_files("average", BASE, experts, tmp_path / "out")
        merged, _ = storage.load_safetensors(tmp_path / "out" / "merged.safetensors")
        path = "stage0_block0/qkv/kernel"
        np.testing.assert_array_equal(merged[path], depth.read(path))


def test_rules_are_compared_on_factors(runs):
    experts = {name: runs / "one" for name in CONFIG.tasks}
    with pytest.raises(SinewichError, match="compared on whole runs, whose adapters are merged as"):
        merge_compare.compare(BASE, experts)
