"""The commands of the configs, from the front door: each ``:debug`` runs to its end."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sinewich_jax.storage import arrays
from tests.data.archives import trees
from tests.helpers import data_root
from tests.tiers import cases

ROOT = pathlib.Path(__file__).parent.parent


def train(config: str, workdir: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", *flags]
    environment = {**os.environ, "SINEWICH_CACHE": str(workdir.parent / "cache")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def check_run(workdir: pathlib.Path, tasks: tuple[str, ...]) -> None:
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    assert set(results["tasks"]) == set(tasks)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    assert {f"loss/{task}" for task in tasks} <= logged
    first, second = tasks[:2]
    assert f"omega/decoder/{first}" in logged and "modulation_index" in logged
    assert f"kernel_cosine/{first}/{second}" in logged
    for name in ("config.json", "results.md", "curves.png", "panels/overview.png"):
        assert (workdir / name).stat().st_size > 0


@pytest.mark.slow
def test_scenes(tmp_path):
    done = train("configs/scenes.py:debug", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run", ("semseg", "human_parts", "saliency", "normals", "depth", "edge"))
    command = [sys.executable, "-m", "sinewich_jax.cli", "evaluate", str(tmp_path / "run")]
    environment = {**os.environ, "SINEWICH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--boundaries"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert {"ods", "ois", "ods_ap"} <= results["tasks"]["edge"]["all"].keys()
    assert "odsF" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("ccp", ("semseg", "human_parts", "saliency", "edge")),
        ("kitchen", ("semseg", "normals", "depth", "edge")),
    ],
)
def test_photographs(tmp_path, name, tasks):
    done = train(f"configs/{name}.py:debug", tmp_path / "run", f"--config.data_dir={data_root()}")
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run", tasks)


@pytest.mark.slow
def test_folder(tmp_path):
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    for name in ("images", "semseg", "saliency", "splits"):
        (photos / name).mkdir(parents=True)
    for stem in "abcd":
        label = rng.integers(0, 2, (20, 24), dtype=np.uint8)
        for name, pixels in (("semseg", label), ("saliency", 255 * label)):
            Image.fromarray(pixels).save(photos / name / f"{stem}.png")
        Image.fromarray(np.stack([100 * label] * 3, -1)).save(photos / "images" / f"{stem}.png")
    (photos / "splits" / "train.txt").write_text("a\nb\nc\n")
    (photos / "splits" / "val.txt").write_text("d\n")
    done = train(
        "configs/folder.py:debug",
        tmp_path / "run",
        f"--config.data_dir={photos}",
        "--config.tasks=('semseg','saliency')",
        "--config.channels.semseg=2",
    )
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run", ("semseg", "saliency"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "word"),
    [
        ("pascal_context", trees.pascal, "sinewich_paper"),
        ("pascal_context", trees.pascal, "tadformer"),
        ("nyud", trees.nyud, "mtlora_plus"),
        ("cityscapes", trees.cityscapes, "sine_lora"),
    ],
)
def test_published_methods_on_published_layouts(tmp_path, name, make, word):
    place = make(tmp_path / "data" / name)
    run = tmp_path / "run"
    flags = (f"--config.data_dir={place}", "--config.image_size=(64, 64)")
    done = train(f"configs/{name}.py:{word},debug", run, *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "results.json").read_text())["steps"] == 2
    for file in ("results.md", "curves.png", "panels/overview.png"):
        assert (run / file).stat().st_size > 0


@pytest.mark.slow
def test_single_task_trains_one_network_a_task_and_is_a_reference(tmp_path):
    run = tmp_path / "single"
    chosen = "--config.tasks=('depth','edge')"
    done = train("configs/scenes.py:single_task,debug", run, chosen)
    assert done.returncode == 0, done.stderr
    for task in ("depth", "edge"):
        assert set(json.loads((run / task / "results.json").read_text())["tasks"]) == {task}
    done = train("configs/scenes.py:lora,debug", tmp_path / "lora", chosen, f"--reference={run}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "lora" / "results.json").read_text())["delta_m"] is not None


@pytest.mark.slow
def test_adapters_of_one_run_are_composed_by_another(tmp_path):
    """Without the first the second says what it needs."""
    first, second = tmp_path / "adapters", tmp_path / "fusion"
    flags = ("configs/glue_fusion.py:debug", second, f"--config.adapters.sources=('{first}',)")
    done = train(*flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"there is no {first}" in done.stderr and not (second / "config.json").exists()
    for run, command in ((first, ("configs/glue_adapters.py:debug", first)), (second, flags)):
        done = train(*command)
        assert done.returncode == 0, done.stderr
        for name in ("results.md", "curves.png", "panels/answers.md", "composition.safetensors"):
            assert (run / name).stat().st_size > 0
    assert json.loads((first / "results.json").read_text())["tasks"].keys() == {"cola", "sst2"}
    assert json.loads((second / "attention.json").read_text())["target"] == "cola"
    assert (second / "diagnostics" / "attention.png").stat().st_size > 0


def test_dry_run_counts_without_the_data():
    command = [sys.executable, "train.py", "--config=configs/pascal_context.py:mtlora", "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["trainable"] == 8_344_634 and counts["total"] == 34_262_906


@pytest.mark.parametrize("name", cases(("ccp", "kitchen"), fast=("ccp",)))
def test_photographs_that_are_absent_name_both_ways_to_find_them(tmp_path, name):
    done = train(f"configs/{name}.py:debug", tmp_path / "run", f"--config.data_dir={tmp_path}")
    assert done.returncode == 2
    assert "data_dir" in done.stderr and "SINEWICH_DATA" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_dry_run_of_pretraining_only_counts(tmp_path):
    done = train("configs/pretrain_scenes.py:debug", tmp_path / "run", "--dry_run")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["trainable"] == counts["total"] > 500_000
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["debug", "debug,masked"])
def test_pretraining_goes_on_where_it_was_stopped(tmp_path, variant):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = f"configs/pretrain_scenes.py:{variant}"
    assert train(config, whole).returncode == 0
    # A run of two of the four steps with the same schedule: its state is that of a stopped one.
    done = train(config, parts, "--config.stop_after=2")
    assert done.returncode == 0, done.stderr
    assert not (parts / "backbone.safetensors").exists()
    changed = train(config, parts, "--config.learning_rate=0.5")
    assert changed.returncode == 2
    assert "learning_rate (there 0.002, now 0.5)" in changed.stderr
    assert train(config, parts).returncode == 0
    first, header = arrays.load_safetensors(whole / "backbone.safetensors")
    second, _ = arrays.load_safetensors(parts / "backbone.safetensors")
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name])
    assert json.loads(header["results"])["config"]["seed"] == 0
    assert header["command"].endswith(".py" + (":masked" if "masked" in variant else ""))


@pytest.mark.slow
def test_pretraining_that_is_asked_to_stop_saves_first(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from configs.pretrain_scenes import get_config
    from sinewich_jax.train import pretrain, signals

    monkeypatch.setattr(signals.StopRequest, "agreed", lambda self, step, every: step == 3)
    config = pretrain.PretrainConfig.from_dict(get_config("debug,masked").to_dict())
    assert pretrain.run(config, tmp_path)["steps"] == 3
    assert arrays.load_safetensors(tmp_path / "state.safetensors")[1]["step"] == "3"
    assert not (tmp_path / "backbone.safetensors").exists()


def test_the_shipped_backbone_is_what_the_config_makes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from configs.pretrain_scenes import get_config
    from sinewich_jax.train import pretrain

    path = ROOT / "sinewich_jax" / "nn" / "weights" / "tiny.safetensors"
    _, header = arrays.load_safetensors(path)
    results = json.loads(header["results"])
    config = dataclasses.asdict(pretrain.PretrainConfig.from_dict(get_config().to_dict()))
    assert config.pop("stop_after") == 0
    assert results["config"] == {**config, "image_size": list(config["image_size"])}
    assert header["command"] == pretrain.COMMAND
    hidden = results["held_out_l1_of_hidden_pixels"]
    assert hidden < 0.5 * results["held_out_l1_of_mean_colour"]


@pytest.mark.slow
def test_a_pretraining_value_that_cannot_be_is_named(tmp_path):
    for flag, word in (
        ("held_out=3", "expected at least 4 (one batch)"),
        ("steps=0", "at least 1"),
        ("batch_size=1", "at least 2"),  # half of it is masked, the other half seen again
        ("steps=1", "'warmup_steps' is 1; expected at least 0 and fewer than the 1 steps"),
        ("backbone=tinny", "'backbone' is 'tinny' (did you mean 'tiny'?)"),
    ):
        done = train("configs/pretrain_scenes.py:debug", tmp_path / "run", f"--config.{flag}")
        assert done.returncode != 0 and word in done.stderr


def test_a_pretraining_key_that_cannot_be_is_named(tmp_path):
    done = train("configs/pretrain_scenes.py:debug", tmp_path / "run", "--config.mask_ration=0.3")
    assert done.returncode == 2
    assert "unknown config key 'mask_ration' (did you mean 'mask_ratio'?)" in done.stderr


def test_pretraining_leaves_a_training_run_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = train("configs/pretrain_scenes.py:debug", tmp_path)
    assert done.returncode == 2 and "holds a training run" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
