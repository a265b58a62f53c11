"""Runs become switches: full fine-tuning, LoRA, Sinewich; and are scored with what comes of it."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json

import jax
import numpy as np
import pytest

from sinewich_jax import storage, train
from sinewich_jax.cli import main
from sinewich_jax.errors import CheckpointError, ConfigError
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.train import evaluate_weights, merge_tasks
from sinewich_jax.train.switch_leaves import opened_bank
from tests.train import fake
from tests.train.runs import CONFIG, save_run

pytestmark = pytest.mark.slow

BASE = importlib.resources.files("sinewich_jax.nn") / "weights" / "tiny.safetensors"
EVERYTHING = ((".*", "trainable"),)


def pack(base, experts, out, *words):
    named = [f"--expert={name}={path}" for name, path in experts.items()]
    return main(["switch", "pack", f"--base={base}", *named, f"--out={out}", *words])


def error(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def flat(source):
    return {name: source.read(name) for name in source.names}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of full fine-tuning from one start, with results of their own."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in {"a": 0.01, "b": 0.03}.items():
        made = fake.make_experiment(rules=EVERYTHING)
        config = fake.make_config(
            steps=4, checkpoint_every=0, merge_stats_every=1, learning_rate=rate
        )
        train.train(config, folder / name, made, devices=jax.devices()[:1])
    assert pack(folder / "a", {n: folder / n for n in "ab"}, folder / "tasks.swb") == 0
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Sinewich runs of one start that ended at other frequencies, and a LoRA run."""
    folder = tmp_path_factory.mktemp("adapters")
    save_run(folder / "one", CONFIG)
    save_run(folder / "two", CONFIG, noise=1)
    lora = dataclasses.replace(CONFIG, method="lora")
    save_run(folder / "lora", lora, noise=2)
    return folder


def test_a_run_is_packed_onto_what_it_started_from_with_its_decoder(trained):
    with SwitchBank.open(trained / "tasks.swb") as bank:
        found, meta = bank.get("b").leaves, bank.meta("b")
    assert found["backbone/kernel"].bits == 1
    with storage.open_leaves(trained / "b") as source:
        np.testing.assert_array_equal(
            found["out_depth/kernel"].delta, source.read("out_depth/kernel")
        )
    assert "omega" in meta["own"] and meta["facts"]["step"] == "4"


def test_nothing_is_written_into_a_run_that_is_read(trained, capsys):
    """Neither over a file of it nor beside them."""
    before = {p: p.read_bytes() for p in sorted((trained / "a").rglob("*")) if p.is_file()}
    some = next(path for path in before if path.name == "results.json")
    for out in (some, trained / "a" / "tasks.swb"):
        assert pack(trained / "b", {"a": trained / "a"}, out, "--overwrite") == 2
        assert f"lies in {trained / 'a'}, which is the expert 'a'" in error(capsys)
    words = ["switch", "apply", str(trained / "tasks.swb"), "b", f"--base={trained / 'a'}"]
    assert main([*words, f"--out={trained / 'a' / 'b.safetensors'}"]) == 2
    assert f"lies in {trained / 'a'}, which is the base" in error(capsys)
    after = {p: p.read_bytes() for p in sorted((trained / "a").rglob("*")) if p.is_file()}
    assert after == before


def test_curvature_of_the_training_chooses(trained, tmp_path):
    out = tmp_path / "saliency.swb"
    assert pack(trained / "a", {"a": trained / "a"}, out, f"--stats=a={trained / 'a'}") == 0
    with SwitchBank.open(out) as bank:
        assert bank.get("a").leaves["backbone/kernel"].bits == 1
        assert bank.meta("a")["score"] is not None


def test_a_run_is_scored_with_other_weights_and_stays_as_it_is(trained, tmp_path):
    made = fake.make_experiment(rules=EVERYTHING)
    before = {p: p.read_bytes() for p in sorted((trained / "b").rglob("*")) if p.is_file()}

    def score(weights, task=None):
        return evaluate_weights.evaluate_weights(
            trained / "b", weights, task, experiment=made, devices=jax.devices()[:1]
        )

    with storage.open_leaves(trained / "b") as source:
        storage.save_safetensors(tmp_path / "same.safetensors", flat(source))
    same = score(tmp_path / "same.safetensors")
    own = json.loads((trained / "b" / "results.json").read_text(encoding="utf-8"))["tasks"]
    for name in fake.TASKS:
        assert same["tasks"][name]["value"] == pytest.approx(own[name]["value"], rel=1e-5)
        assert same["tasks"][name]["own"] == own[name]["value"]
    assert same["kept"] == 0
    # The same bits from the bank and from the file that 'apply' writes of it.
    bank = trained / "tasks.swb"
    words = ["switch", "apply", str(bank), "b", f"--base={trained / 'a'}"]
    assert main([*words, f"--out={tmp_path / 'b.safetensors'}"]) == 0
    switched = score(f"{bank}@b", "depth")
    assert switched["tasks"].keys() == {"depth"}
    assert switched["tasks"] == score(tmp_path / "b.safetensors", "depth")["tasks"]
    assert switched["tasks"]["depth"]["value"] != own["depth"]["value"]
    # A part of the model: the rest is the run's.
    with opened_bank(bank, {"a": 1.0}, trained / "a") as source:
        part = {"kernel": source.read("backbone/kernel")}
    storage.save_safetensors(tmp_path / "part.safetensors", part)
    found = score(tmp_path / "part.safetensors")
    assert found["replaced"] == 1 and found["kept"] > 5
    after = {p: p.read_bytes() for p in sorted((trained / "b").rglob("*")) if p.is_file()}
    assert after == before


def test_weights_of_another_model_are_refused(trained, tmp_path, capsys):
    made = fake.make_experiment(rules=EVERYTHING)

    def refused(kind, match, leaves=None, task=None, weights=None):
        if leaves is not None:
            weights = tmp_path / "w.safetensors"
            storage.save_safetensors(weights, leaves)
        with pytest.raises(kind, match=match):
            evaluate_weights.evaluate_weights(trained / "b", weights, task, experiment=made)

    wrong = np.ones((1, 1, 3, 9), np.float32)
    refused(CheckpointError, "leaf 'kernl', which the model of the run", {"kernl": wrong})
    refused(
        CheckpointError, r"has shape \(1, 1, 3, 9\), expected \(1, 1, 3, 8\)", {"kernel": wrong}
    )
    refused(ConfigError, r"no task 'dpth' \(did you mean 'depth'\?\)", {"x": wrong}, "dpth")
    refused(CheckpointError, "expected weights at gone", weights="gone.safetensors")
    refused(ConfigError, "name one, as in", weights=trained / "tasks.swb")
    refused(ConfigError, "has no task 'c'", weights=f"{trained / 'tasks.swb'}@c")
    for words, message in (
        (["--task=depth"], "--task goes with --weights"),
        (["--weights=x", "--boundaries"], "--boundaries is about the run itself"),
    ):
        assert main(["evaluate", str(trained / "b"), *words]) == 2
        assert message in error(capsys)


def test_tasks_with_adapters_are_packed_as_the_kernels_that_they_make(adapters, tmp_path):
    """Of Sinewich and of LoRA, on the plain backbone; frequencies may differ."""
    experts = {
        "semseg": adapters / "one",
        "other": f"{adapters / 'two'}@semseg",
        "lora": f"{adapters / 'lora'}@depth",
    }
    out = tmp_path / "kernels.swb"
    assert pack(BASE, experts, out) == 0
    base, _ = storage.load_safetensors(BASE)
    for name, (run, task) in {
        "other": ("two", "semseg"),
        "lora": ("lora", "depth"),
    }.items():
        with SwitchBank.open(out) as bank:
            found, meta = bank.get(name).leaves, bank.meta(name)
        with merge_tasks.open_task(adapters / run, task) as source:
            kernels = flat(source)
        path = "stage3_block1/fc1/kernel"
        change = kernels[path] - base[path]
        kept = np.unpackbits(found[path].mask, count=change.size, bitorder="little") > 0
        largest = np.abs(change.ravel())
        assert largest[kept].min() > np.quantile(largest, 0.5)
        own = kernels.keys() - base.keys()
        assert own == set(meta["own"]) and meta["facts"]["task"] == task
        for leaf in own:
            np.testing.assert_array_equal(found[leaf].delta, kernels[leaf], err_msg=leaf)
    # The base is found again in a run that started from it.
    with opened_bank(out, {"lora": 1.0}, adapters / "one") as source:
        assert source.metadata["task"] == "lora" and "stage0/fc1/kernel" not in base


def test_factors_are_packed_where_their_frequencies_agree(adapters, tmp_path, capsys):
    one, two = adapters / "one", adapters / "two"
    assert pack(one, {"a": one, "b": one}, tmp_path / "ok.swb") == 0
    with SwitchBank.open(tmp_path / "ok.swb") as bank:
        assert bank.frequencies.startswith("sha256:")
        assert any("/task/" in path for path in bank.get("a").leaves)
    capsys.readouterr()
    assert pack(one, {"a": one, "b": two}, tmp_path / "no.swb") == 2
    message = error(capsys)
    assert "'a' and 'b' read the factors of their task kernels at other frequencies" in message
    assert "--expert NAME=WORKDIR@TASK" in message
    # Neither together nor one after the other.
    assert pack(one, {"c": two}, tmp_path / "ok.swb", "--append") == 2
    assert "'a' and 'c' read the factors" in error(capsys)
    assert not (tmp_path / "no.swb").exists()


def test_kernels_do_not_go_into_a_run_with_adapters(adapters, tmp_path):
    out = tmp_path / "kernels.swb"
    assert pack(BASE, {"semseg": adapters / "one"}, out) == 0
    flat_base, _ = storage.load_safetensors(BASE)
    storage.save_safetensors(tmp_path / "plain.safetensors", flat_base)
    source = fake.random_source(4, 0, (32, 32))
    made = dataclasses.replace(_experiment(), sources={"train": source, "eval": source})
    with pytest.raises(CheckpointError, match=r"holds a plain backbone, and the run has adapters"):
        evaluate_weights.evaluate_weights(
            adapters / "one", tmp_path / "plain.safetensors", experiment=made
        )


def _experiment():
    from sinewich_jax.train import build

    return build.experiment(dataclasses.replace(CONFIG, backbone_weights="random"))
