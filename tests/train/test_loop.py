from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sinewich_jax.errors import CheckpointError, ConfigError, DataError, TrainingError
from sinewich_jax.train import evaluate_workdir, train
from tests.train import fake

ROOT = Path(__file__).resolve().parents[2]


def one_device():
    return jax.devices()[:1]


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[tuple]:
    """Every loss and gradient norm, to the last bit."""
    return [
        tuple((key, value) for key, value in line.items() if key[:4] in ("step", "loss", "grad"))
        for line in lines(workdir)
        if "loss" in line
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run that several tests look at and none changes."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    outcome = train(fake.make_config(), workdir, fake.make_experiment(), one_device())
    return workdir, outcome


def stop_after(step: int, monkeypatch):
    """Lets the run believe that it was signalled during ``step``."""
    from sinewich_jax.train import signals

    monkeypatch.setattr(signals.StopRequest, "agreed", lambda self, now, every: now == step)


def test_run_leaves_everything_the_contract_lists(finished):
    workdir, outcome = finished
    assert outcome.status == "finished" and outcome.step == 12
    names = {path.name for path in workdir.iterdir()}
    expected = {"config.json", "metrics.jsonl", "results.json", "results.md", "checkpoints"}
    assert expected | {"panels", "base", "baseline.json", "tensorboard"} <= names
    results = json.loads((workdir / "results.json").read_text())
    assert results == outcome.results
    assert tuple(results["tasks"]) == tuple(sorted(fake.TASKS))
    for row in results["tasks"].values():
        assert set(row) == {
            "metric", "unit", "higher_is_better", "value", "baseline", "reference", "all"
        }  # fmt: skip
        assert row["all"][row["metric"]] == row["value"]
    assert results["delta_m"] is None
    assert results["trainable"] < results["total"]
    assert results["steps"] == 12 and "5 evaluation examples of 6 x 8" in results["protocol"]
    assert results["images_per_second"] > 0 and results["train_seconds"] > 0
    assert len(list((workdir / "panels").glob("*.png"))) >= 1


def test_metrics_hold_losses_and_diagnostics_of_each_logged_step(finished):
    workdir, _ = finished
    steps = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    for line in steps:
        for task in fake.TASKS:
            assert np.isfinite(line[f"loss/{task}"])
            assert line[f"omega/global/{task}"] > 0
            assert line[f"modulation_index/out/{task}"] > 0
        assert -1 <= line["update_cosine/out"] <= 1
        weights = {task.name: task.weight for task in fake.make_experiment().tasks}
        total = sum(weights[task] * line[f"loss/{task}"] for task in fake.TASKS)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert any(key.startswith("eval/semseg/") for key in lines(workdir)[-1])
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_only_the_trainable_tree_and_the_statistics_move():
    from sinewich_jax import parallel
    from sinewich_jax.train import setup, step

    config, experiment = fake.make_config(), fake.make_experiment()
    made = setup.set_up(config, parallel.make_mesh(devices=one_device()), experiment)
    run = step.make_train_step(experiment, made.tx, made.placed, made.mesh, 0)
    before = jax.device_get(made.placed)
    state = made.placed.state
    from sinewich_jax.data import pipeline

    batch = pipeline.batches(experiment.train_source, fake.TASKS, 8, 0).batch_at(0)
    state, metrics = run(state, made.placed.constants, parallel.put_batch(batch, made.mesh))
    after = jax.device_get(state)
    assert "backbone" not in after.params and "backbone" in made.placed.constants["params"]
    np.testing.assert_equal(jax.device_get(made.placed.constants), before.constants)
    for path in ("up", "omega", "norm"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.state.params)
        assert max(jax.tree.leaves(moved[path])) > 0
    stats, old = after.model_state["batch_stats"], before.state.model_state["batch_stats"]
    assert np.abs(stats["norm"]["mean"] - old["norm"]["mean"]).max() > 0
    assert int(after.step) == 1 and float(metrics["grad_norm"]) > 0
    optimizer_paths = {
        jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(state.opt_state)
    }
    assert not any("backbone" in path for path in optimizer_paths)


def test_stopped_and_resumed_run_is_bitwise_the_uninterrupted_one(finished, tmp_path, monkeypatch):
    config = fake.make_config(checkpoint_every=0)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        outcome = train(config, tmp_path / "run", fake.make_experiment(), one_device())
    assert (outcome.status, outcome.step, outcome.results) == ("stopped", 5, None)
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5]
    outcome = train(config, tmp_path / "run", fake.make_experiment(), one_device())
    assert outcome.status == "finished"
    assert losses(tmp_path / "run") == losses(finished[0])
    for name, row in outcome.results["tasks"].items():
        assert row == finished[1].results["tasks"][name]


def test_crash_after_a_checkpoint_drops_the_lines_beyond_it(finished, tmp_path, monkeypatch):
    from sinewich_jax.train import step

    make = step.make_train_step

    def crashing(*args):
        real = make(*args)

        def run(state, constants, batch):
            if int(state.step) == 6:
                raise RuntimeError("power cut")
            return real(state, constants, batch)

        return run

    config = fake.make_config(checkpoint_every=4)
    with monkeypatch.context() as patch:
        patch.setattr(step, "make_train_step", crashing)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, tmp_path, fake.make_experiment(), one_device())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert train(config, tmp_path, fake.make_experiment(), one_device()).status == "finished"
    assert losses(tmp_path) == losses(finished[0])


def test_finished_run_says_so_and_touches_nothing(finished, capsys):
    workdir, first = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    again = [fake.make_experiment(), one_device(), [workdir]]
    outcome = train(fake.make_config(), workdir, *again)
    assert outcome.status == "already_finished" and outcome.results == first.results
    said = capsys.readouterr().err
    assert "is complete" in said and f"sinewich evaluate {workdir} --reference" in said
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    after.pop(workdir / "config.json"), before.pop(workdir / "config.json")
    assert after == before


def test_work_directory_of_another_config_is_refused(finished):
    workdir, _ = finished
    kept = (workdir / "config.json").read_text()
    config = fake.make_config(rank=3, learning_rate=0.5)
    with pytest.raises(ConfigError) as error:
        train(config, workdir, fake.make_experiment(), one_device())
    assert "learning_rate (there 0.01, now 0.5)" in str(error.value)
    assert "rank (there 12, now 3)" in str(error.value)
    assert "checkpoint_every" not in str(error.value)
    assert (workdir / "config.json").read_text() == kept


def test_what_fails_before_the_first_step_leaves_the_work_directory_free(tmp_path):
    def absent(part):
        class Absent(fake.FakeExperiment):
            pass

        def missing(self):
            raise DataError(f"no {part} examples")

        setattr(Absent, f"{part}_source", property(missing))
        whole = {"train_source": fake.random_source(8, 1), "eval_source": fake.random_source(4, 2)}
        made = fake.make_experiment()
        experiment = object.__new__(Absent)
        fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        experiment.__dict__.update({**fields, **whole})
        return experiment

    for part in ("train", "eval"):
        with pytest.raises(DataError, match=f"no {part} examples"):
            train(fake.make_config(), tmp_path, absent(part), one_device())
        assert not (tmp_path / "config.json").exists()
        assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(CheckpointError, match=r"has no results\.json"):
        train(fake.make_config(), tmp_path, fake.make_experiment(), one_device(), [tmp_path])
    assert not (tmp_path / "config.json").exists()
    changed = fake.make_config(rank=3, steps=1)
    outcome = train(changed, tmp_path, fake.make_experiment(), one_device())
    assert outcome.status == "finished"


@pytest.mark.parametrize("value", [0.0, None])
def test_a_reference_that_delta_m_cannot_divide_by_is_refused_before_training(tmp_path, value):
    row = {"steps": 1, "tasks": {"depth": {"metric": "rmse", "value": value}}}
    (tmp_path / "results.json").write_text(json.dumps(row))
    with pytest.raises(CheckpointError, match="depth rmse"):
        train(
            fake.make_config(), tmp_path / "run", fake.make_experiment(), one_device(), [tmp_path]
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_reference_scored_on_other_examples_is_refused(finished, tmp_path):
    config = fake.make_config(eval_size=3)
    with pytest.raises(CheckpointError, match="was scored with eval_size=None, this run has 3"):
        train(config, tmp_path / "run", fake.make_experiment(), one_device(), [finished[0]])


def test_a_reference_that_is_no_training_run_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"held_out_l1_of_hidden_pixels": 0.2}')
    with pytest.raises(CheckpointError, match="holds no results of tasks"):
        train(fake.make_config(), tmp_path / "x", fake.make_experiment(), one_device(), [tmp_path])


def test_a_run_that_has_lost_its_config_is_not_taken_over(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    (workdir / "config.json").unlink()
    for left in ("checkpoints", "results.json"):
        with pytest.raises(ConfigError, match=rf"holds {left} but no config\.json"):
            train(fake.make_config(rank=3), workdir, fake.make_experiment(), one_device())
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def test_a_config_of_another_version_is_named(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    recorded = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**recorded, "rnak": 3}))
    with pytest.raises(ConfigError, match=r"copy/config\.json, perhaps of another version.*'rnak'"):
        train(fake.make_config(), workdir, fake.make_experiment(), one_device())
    (workdir / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json holds a list"):
        train(fake.make_config(), workdir, fake.make_experiment(), one_device())


@pytest.mark.slow
def test_a_damaged_base_is_no_loss_while_it_can_be_made_anew(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        train(fake.make_config(), tmp_path, fake.make_experiment(), one_device())
    (base,) = (tmp_path / "base").iterdir()
    base.write_bytes(base.read_bytes()[:-1] + b"\x7f")
    outcome = train(fake.make_config(), tmp_path, fake.make_experiment(), one_device())
    assert outcome.status == "finished" and losses(tmp_path) == losses(finished[0])


def test_a_bad_evaluation_label_is_told_before_training(tmp_path):
    experiment = fake.make_experiment()

    class Bad(type(experiment.eval_source)):
        def __init__(self):
            self.__dict__.update(experiment.eval_source.__dict__)

        def __getitem__(self, index):
            if index == 4:
                raise DataError("semseg/4.png holds 9")
            return super().__getitem__(index)

    experiment = dataclasses.replace(experiment, eval_source=Bad())
    with pytest.raises(DataError, match=r"4\.png holds 9"):
        train(fake.make_config(), tmp_path, experiment, one_device())
    assert list(tmp_path.iterdir()) == []


def test_work_directory_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # Not by its mode: whoever runs the tests as root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ConfigError, match="cannot be written to"):
        train(fake.make_config(), tmp_path / "run", fake.make_experiment(), one_device())


def test_work_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        train(fake.make_config(), tmp_path / "file" / "x", fake.make_experiment(), one_device())


def test_work_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        train(fake.make_config(), tmp_path / "file", fake.make_experiment(), one_device())


def test_corrupted_newest_checkpoint_falls_back_and_says_so(
    finished, tmp_path, monkeypatch, capsys
):
    config = fake.make_config(checkpoint_every=4)
    with monkeypatch.context() as patch:
        stop_after(9, patch)
        train(config, tmp_path, fake.make_experiment(), one_device())
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 8, 9]
    for path in sorted((tmp_path / "checkpoints" / "9" / "params").rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    outcome = train(config, tmp_path, fake.make_experiment(), one_device())
    messages = capsys.readouterr().err
    assert "checkpoint of step 9 cannot be read and is skipped" in messages
    assert "going on from the checkpoint of step 8" in messages
    assert outcome.status == "finished"
    assert losses(tmp_path) == losses(finished[0])


def test_full_disk_during_a_save_loses_nothing(finished, tmp_path, monkeypatch):
    from sinewich_jax.storage import checkpoints

    config = fake.make_config(checkpoint_every=4)
    write = checkpoints.write_manifest

    def full(folder, step, leaves):
        if step == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, step, leaves)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_manifest", full)
        with pytest.raises(CheckpointError, match="no space left"):
            train(config, tmp_path, fake.make_experiment(), one_device())
    assert train(config, tmp_path, fake.make_experiment(), one_device()).status == "finished"
    assert losses(tmp_path) == losses(finished[0])


def test_nan_stops_the_run_and_names_task_step_and_examples(tmp_path):
    experiment = fake.make_experiment()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Poisoned(type(experiment.tasks[1])):
        def loss(self, logits, label, valid):
            return super().loss(logits, label, valid) / (label.max() < 1000.0).astype("float32")

    source = experiment.train_source

    class OneBad(type(source)):
        def __init__(self):
            self.__dict__.update(source.__dict__)

        def __getitem__(self, index):
            example = super().__getitem__(index)
            if index == 13:
                example["labels"]["depth"] = np.full(fake.SIZE, 2000.0, np.float32)
            return example

    depth = Poisoned(
        **{f.name: getattr(experiment.tasks[1], f.name) for f in dataclasses.fields(Poisoned)}
    )
    experiment = dataclasses.replace(
        experiment,
        tasks=(experiment.tasks[0], depth, experiment.tasks[2]),
        train_source=OneBad(),
        augment=None,
    )
    # Logging seldom: the guard has to find the step in between, before anything is saved.
    config = fake.make_config(log_every=50, checkpoint_every=50, steps=50)
    with pytest.raises(TrainingError) as error:
        train(config, tmp_path, experiment, one_device())
    message = str(error.value)
    assert "the loss of depth" in message and "semseg" not in message
    (path,) = tmp_path.glob("nan_step_*.json")
    record = json.loads(path.read_text())
    assert record["tasks"] == ["depth"] and 13 in record["train_examples"]
    assert record["step"] <= 3  # 20 examples in batches of 8: the third batch at the latest
    assert f"at step {record['step']}" in message and " 13" in message
    assert not (tmp_path / "checkpoints").exists()


def test_collapsed_frequencies_are_warned_about_once(tmp_path, capsys):
    experiment = fake.make_experiment()

    class Collapsed(type(experiment.model)):
        def diagnostics(self):
            real = super().diagnostics()
            return {**real, "update_cosine": {"out": 0.0 * real["update_cosine"]["out"] + 0.99}}

    experiment = dataclasses.replace(experiment, model=Collapsed(experiment.model.heads))
    train(fake.make_config(warmup_steps=5), tmp_path, experiment, one_device())
    warnings = [line for line in lines(tmp_path) if "warning" in line]
    assert [line["step"] for line in warnings] == [6]
    assert "collapsed to a scalar gain" in warnings[0]["warning"]
    assert "collapsed to a scalar gain" in capsys.readouterr().err


def test_baselines_without_frequencies_train_too(tmp_path):
    config = fake.make_config(steps=4, eval_every=2)
    outcome = train(config, tmp_path, fake.make_experiment(switching=False), one_device())
    assert outcome.results["switching"] == {}
    assert [line["step"] for line in lines(tmp_path) if "eval/depth/rmse" in line] == [2, 4]


def test_evaluating_again_gives_the_same_results_on_other_devices(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    results = evaluate_workdir(workdir, [finished[0]], fake.make_experiment(), jax.devices()[:8])
    for name, row in finished[1].results["tasks"].items():
        assert results["tasks"][name]["value"] == pytest.approx(row["value"], rel=1e-5)
        assert results["tasks"][name]["reference"] == row["value"]
    assert results["delta_m"] == pytest.approx(0.0, abs=1e-3)
    assert json.loads((workdir / "results.json").read_text()) == results


@pytest.mark.slow
def test_baseline_is_kept_until_the_data_changes(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    path = workdir / "baseline.json"
    kept = json.loads(path.read_text())
    kept["scores"]["depth"]["rmse"] = 7.0
    path.write_text(json.dumps(kept))
    same = evaluate_workdir(workdir, [], fake.make_experiment(), one_device())
    assert same["tasks"]["depth"]["baseline"] == 7.0
    grown = evaluate_workdir(workdir, [], fake.make_experiment(train=21), one_device())
    assert grown["tasks"]["depth"]["baseline"] != 7.0


def test_evaluating_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        evaluate_workdir(tmp_path, experiment=fake.make_experiment(), devices=one_device())


def start(workdir: Path, delay: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.train.fake", str(workdir), "40", str(delay)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A process that nobody stops."""
    workdir = tmp_path_factory.mktemp("runs") / "process"
    process = start(workdir, 0.0)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.split() == ["finished", "40"]
    assert len(losses(workdir)) == 40
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(number, whole, tmp_path):
    stopped = start(tmp_path, 0.1)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline and stopped.poll() is None
        time.sleep(0.1)
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=200)
    assert stopped.returncode == 0, err
    status, step = out.split()
    assert status == "stopped" and 3 <= int(step) < 40
    assert f"stopped at step {step} of 40 and saved" in err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [step]

    resumed = start(tmp_path, 0.0)
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert out.split() == ["finished", "40"]
    assert losses(tmp_path) == losses(whole)
