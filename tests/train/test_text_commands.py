"""Commands on runs of text tasks: each does its work, or refuses in one sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sinewich_jax.cli import main
from sinewich_jax.errors import ConfigError
from sinewich_jax.train import add_task, build, switch_features, trained, workdir
from tests.train.runs import CONFIG, save_run, text_config


def test_a_router_of_pictures_takes_no_texts(tmp_path):
    workdir.prepare(tmp_path, text_config("full_ft"))
    workdir.claim(tmp_path, text_config("full_ft"))
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    refusal = r"^a router of pictures takes runs on images, .* \(cola, sst2\) read texts"
    with pytest.raises(ConfigError, match=refusal):
        switch_features.Features(None, tmp_path)
    with pytest.raises(ConfigError, match=refusal):
        next(switch_features.pictures(tmp_path, None, "train"))


@pytest.mark.parametrize("added", ["edge", "rte"])
def test_no_task_is_added_to_a_run_on_texts(monkeypatch, added):
    config = text_config("sinewich")
    base = trained.Trained(build.experiment(config), {"params": {}}, 7, config, [])
    monkeypatch.setattr(trained, "read_trained", lambda _: base)
    asked = CONFIG if added == "edge" else text_config("sinewich")
    asked = dataclasses.replace(asked, tasks=(added,), add_task=added, base_run="base")
    with pytest.raises(ConfigError, match=r"'add_task' takes runs on images, .* read texts"):
        add_task.plan(asked)


def test_no_text_task_is_added_to_a_run_on_images(monkeypatch):
    config = dataclasses.replace(CONFIG, method="decoder_only", decoder_base="shared")
    base = trained.Trained(build.experiment(config), {"params": {}}, 7, config, [])
    monkeypatch.setattr(trained, "read_trained", lambda _: base)
    asked = dataclasses.replace(config, tasks=("cola",), add_task="cola", base_run="base")
    with pytest.raises(ConfigError, match="'add_task' is 'cola', which only images have"):
        add_task.plan(asked)


@pytest.mark.slow
def test_runs_on_texts_are_merged_and_packed_and_have_no_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photo.png")
    for noise, task in enumerate(("cola", "sst2")):
        save_run(tmp_path / task, text_config(f"full_ft,{task}"), noise=noise)
    save_run(tmp_path / "both", text_config("sinewich"))
    experts = ("--expert=cola=cola", "--expert=sst2=sst2")
    for words, printed in (
        (("merge", "ties", "--base=cola", *experts, "--out=merged"), "2 experts merged"),
        (("evaluate", "cola", "--weights=merged/merged.safetensors"), "2 of the run"),
        (("switch", "pack", "--base=cola", *experts, "--out=tasks.swb"), "written: tasks.swb"),
        (("evaluate", "sst2", "--weights=tasks.swb@sst2"), "0 of the run"),
    ):
        assert main(list(words)) == 0, capsys.readouterr().err
        assert printed in capsys.readouterr().out
    of_both = ("--expert=cola=both@cola", "--expert=sst2=both@sst2")
    for words, told in (
        (("export", "cola", "--task=cola", "--out=a.safetensors"), "'sinewich export' takes runs"),
        (("export", "cola", "--task=cola", "--out=a.stablehlo"), "'sinewich export' takes runs"),
        (("predict", "cola", "photo.png", "--out=answers"), "photo.png is no file of texts"),
        (("merge", "ties", "--base=both", *of_both, "--out=m"), "the network is a TextModel"),
        (("evaluate", "cola", "--resolution=original"), "'eval_resolution' is 'original'"),
        (
            ("switch", "route", "tasks.swb", "--base=cola", "--queries=cola=cola", "--save"),
            "a router of pictures takes runs on images",
        ),
    ):
        assert main(list(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and told in line
