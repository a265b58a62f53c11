"""The small parts of a run: writers, monitor, timer, stop request, mean labels, cache."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax import data, parallel, storage
from sinewich_jax.errors import CheckpointError, DataError, TrainingError
from sinewich_jax.nn.resize import resize_bilinear
from sinewich_jax.train import (
    cache,
    evaluate,
    monitor,
    references,
    setup,
    signals,
    timing,
    workdir,
    writers,
)
from sinewich_jax.train import state as states
from sinewich_jax.train.references import read_references
from tests.train import fake

# ---- writers


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_keeps_exact_numbers_and_turns_nan_into_null(tmp_path):
    writer = writers.JsonlWriter(tmp_path / "m.jsonl")
    value = float(np.float32(0.1) * np.float32(3))
    writer.write(1, {"loss": value, "speed": math.nan, "none": None})
    writer.note(1, "warning", "so so")
    writer.close()
    first, second = read(tmp_path / "m.jsonl")
    assert first == {"step": 1, "loss": value, "speed": None, "none": None}
    assert second == {"step": 1, "warning": "so so"}


def test_jsonl_resumes_without_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = writers.JsonlWriter(path)
    for step in range(1, 6):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    writer = writers.JsonlWriter(path, from_step=3)
    writer.write(4, {"loss": 9.0})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read(path)] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0)
    ]  # fmt: skip
    writers.JsonlWriter(path).close()
    assert read(path) == []


def test_console_prints_plain_lines_where_there_is_no_terminal(capsys):
    writer = writers.ConsoleWriter(100, shown=["eval/depth/rmse", "eval/depth/none"])
    writer.write(10, {"loss": 2.0, "images_per_second": 50.0, "eta_seconds": 3723.0})
    writer.write(20, {"loss": 1.0, "images_per_second": math.nan, "eta_seconds": math.nan})
    writer.write(20, {"eval/depth/rmse": 0.5, "eval/depth/none": None, "eval/depth/other": 1.0})
    writer.note(20, "warning", "collapsed [here]")
    writer.close()
    # Before version 15, rich ends with an empty line.
    assert capsys.readouterr().err.rstrip("\n").splitlines() == [
        "step 10/100  loss 2.0000  50.0 examples/s  ETA 1:02:03",
        "step 20/100  loss 1.0000",
        "step 20  depth/rmse 0.5000",
        "warning at step 20: collapsed [here]",
    ]


def test_tensorboard_events_hold_the_finite_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = writers.TensorBoardWriter(tmp_path)
    writer.write(3, {"loss": 1.5, "speed": math.nan})
    writer.close()
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert b"loss" in content and b"speed" not in content


# ---- monitor


def diagnostics(cosine, modulation):
    return {
        "omega": {"global": jnp.array([1.0, 2.0])},
        "modulation_index": {"a": jnp.array([0.1, modulation])},
        "update_cosine": {"a": jnp.float32(cosine), "b": jnp.float32(cosine)},
    }


def test_diagnostics_become_flat_scalars():
    scalars = monitor.flatten_diagnostics(diagnostics(0.75, 2.0), ["depth", "edge"])
    assert scalars == {
        "omega/global/depth": 1.0,
        "omega/global/edge": 2.0,
        "modulation_index/a/depth": pytest.approx(0.1),
        "modulation_index/a/edge": 2.0,
        "update_cosine/a": 0.75,
        "update_cosine/b": 0.75,
        "update_cosine": 0.75,
        "modulation_index": 2.0,
    }


@pytest.mark.parametrize(
    ("cosine", "modulation", "words"),
    [
        (0.9, 2.0, None),
        (0.96, 2.0, ["0.960", "above 0.95"]),
        (0.5, 0.4, ["0.400", "below 0.5"]),
        (0.99, 0.2, ["above 0.95", "below 0.5"]),
        (math.nan, 2.0, None),
    ],
)
def test_collapse_is_told_by_cosine_or_modulation(cosine, modulation, words):
    scalars = monitor.flatten_diagnostics(diagnostics(cosine, modulation), ["depth", "edge"])
    warning = monitor.collapse_warning(scalars)
    assert (warning is None) == (words is None)
    for word in words or []:
        assert word in warning


def test_methods_without_frequencies_are_never_warned_about():
    gain_only = {"omega": {}, "modulation_index": {}, "update_cosine": {"a": jnp.float32(1.0)}}
    scalars = monitor.flatten_diagnostics(gain_only, ["depth", "edge"])
    assert scalars["update_cosine"] == 1.0
    assert monitor.collapse_warning(scalars) is None
    assert monitor.flatten_diagnostics({}, ["depth"]) == {}


def metrics(**changes):
    return {"loss": 1.0, "loss/depth": 0.5, "loss/edge": 0.5, "grad_norm": 1.0, **changes}


def test_guard_reports_the_first_bad_step_of_many(tmp_path):
    guard = monitor.NanGuard(tmp_path, locate=lambda position: position % 10)
    assert guard.check() == {}
    guard.add(1, metrics(), np.array([8, 9]))
    assert guard.check() == metrics()
    guard.add(2, metrics(), np.array([10, 11]))
    bad = metrics(**{"loss/edge": math.inf, "loss": math.nan})
    guard.add(3, bad, np.array([12, 13]))
    guard.add(4, metrics(**{key: math.nan for key in metrics()}), np.array([14, 15]))
    with pytest.raises(TrainingError, match=r"the loss of edge \(inf\) .* step 3, .* 2, 3, and"):
        guard.check()
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["tasks"] == ["edge"] and record["metrics"]["loss/edge"] == "inf"
    assert record["stream_positions"] == [12, 13] and record["train_examples"] == [2, 3]


def test_guard_sees_a_bad_gradient_under_a_good_loss(tmp_path):
    guard = monitor.NanGuard(tmp_path, locate=int)
    guard.add(1, metrics(grad_norm=math.nan), np.array([0]))
    with pytest.raises(TrainingError, match="the gradient norm is not finite at step 1"):
        guard.check()


# ---- timer


def test_timer_counts_only_laps_and_continues_from_its_record(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timer = timing.Timer()
    timer.step(8)
    now[0] += 50  # compilation
    assert math.isnan(timer.lap())
    for _ in range(4):
        timer.step(8)
    now[0] += 2
    assert timer.lap() == 16.0
    now[0] += 10  # evaluation
    timer.skip()
    timer.step(8)
    now[0] += 2
    assert timer.lap() == 4.0
    assert timer.images_per_second == 10.0 and timer.wall == 64.0
    again = timing.Timer(**json.loads(json.dumps(timer.record())))
    now[0] += 6
    assert again.summary() == {"train_seconds": 70.0, "images_per_second": 10.0}


# ---- stop request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_raises_a_flag_and_hands_the_second_to_the_old_handler(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("old"))
    try:
        with signals.StopRequest() as stop:
            assert not stop.agreed(1, 10)
            os.kill(os.getpid(), number)
            assert stop.agreed(1, 10) and seen == []
            os.kill(os.getpid(), number)
            assert seen == ["old"]
        with signals.StopRequest():
            pass
        os.kill(os.getpid(), number)
        assert seen == ["old", "old"]
    finally:
        signal.signal(number, before)


# ---- mean labels


@pytest.mark.parametrize("held", [0, 2**30])
def test_mean_labels_are_the_same_held_or_read_again(held, monkeypatch):
    monkeypatch.setattr(evaluate, "HELD_BYTES", held)
    experiment = fake.make_experiment()
    means = evaluate.mean_labels(experiment.tasks, experiment.train_source)
    assert {name: value.shape for name, value in means.items()} == {
        "semseg": (*fake.SIZE, 3),
        "depth": (*fake.SIZE, 1),
        "saliency": (*fake.SIZE, 1),
    }
    depth = np.stack([example["labels"]["depth"] for example in experiment.train_source])
    np.testing.assert_allclose(means["depth"][..., 0], depth.mean(0), rtol=1e-5)


def test_delta_m_needs_a_reference_for_every_task():
    experiment = fake.make_experiment()
    scores = {task.name: {task.primary: 0.5} for task in experiment.tasks}
    some = evaluate.make_results(experiment.tasks, scores, scores, {"depth": 1.0})
    assert some["delta_m"] is None and some["tasks"]["depth"]["reference"] == 1.0
    references = dict.fromkeys(fake.TASKS, 1.0)
    every = evaluate.make_results(experiment.tasks, scores, scores, references, steps=3)
    # Depth is half the reference's error (+50 %), the two others half of its score (-50 %).
    assert every["delta_m"] == pytest.approx(-50 / 3)
    assert every["steps"] == 3


# ---- cache


def test_compilation_cache_respects_the_environment(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(cache.jax.config, "update", asked.__setitem__)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert cache.enable_compilation_cache() == "mine" and asked == {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache.enable_compilation_cache()
    assert folder == str(tmp_path / "sinewich_jax" / "xla")
    assert asked == {"jax_compilation_cache_dir": folder}


def test_kernel_cosines_are_logged_pair_by_pair():
    first, second = np.full((3, 3), 0.5), np.full((3, 3), 0.7)
    first[0, 1] = first[1, 0] = -0.1
    scalars = monitor.flatten_diagnostics(
        {"pairwise_cosine": {"a": first, "b": second}}, ("semseg", "depth", "edge")
    )
    assert scalars == pytest.approx(
        {
            "kernel_cosine/semseg/depth": 0.3,
            "kernel_cosine/semseg/edge": 0.6,
            "kernel_cosine/depth/edge": 0.6,
        }
    )


def test_scores_name_the_classes_of_the_data_set(tmp_path):
    names = ["sky", "road", "car"]
    plain = fake.make_experiment()
    source = plain.eval_source
    source.class_names = {"semseg": names}
    config = fake.make_config()
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    evaluator = evaluate.Evaluator(setup.set_up(config, mesh, plain), config.batch_size)
    named = {task.name: task for task in evaluator.tasks}
    assert named["semseg"].class_names == tuple(names)
    assert named["depth"] == next(task for task in plain.tasks if task.name == "depth")
    assert "iou/road" in evaluator.baseline(config, tmp_path)["semseg"]


def test_published_references_are_found_by_name_and_belong_to_their_data():
    config = fake.make_config(data="pascal_mt", image_size=(448, 448))
    found = read_references(["pascal_context_swin_t"], config)
    assert found == {"semseg": 0.6721, "human_parts": 0.6193, "saliency": 0.6235, "normals": 17.97}
    for key, other in (
        ("data", fake.make_config(image_size=(448, 448))),
        ("image_size", dataclasses.replace(config, image_size=(512, 512))),
        ("eval_resolution", dataclasses.replace(config, eval_resolution="original")),
    ):
        with pytest.raises(CheckpointError, match=rf"was scored with {key}="):
            read_references(["pascal_context_swin_t"], other)


def test_runs_compare_by_how_they_were_scored_and_not_by_their_configs(tmp_path):
    config = fake.make_config()
    workdir.prepare(tmp_path, config)
    workdir.claim(tmp_path, config)
    original = dataclasses.replace(config, eval_resolution="original")
    row = {"metric": "miou", "value": 0.5}
    for scored in (config, original):
        results = {"steps": 1, "tasks": {"semseg": row}, "scored_on": references.scored_on(scored)}
        storage.write_json(tmp_path / "results.json", results)
        assert read_references([tmp_path], scored) == {"semseg": 0.5}
        other = original if scored is config else config
        with pytest.raises(CheckpointError, match="was scored with eval_resolution="):
            read_references([tmp_path], other)


@pytest.mark.parametrize("content", ["[]", "{", '{"origin": 3}'])
def test_a_damaged_baseline_is_made_anew(tmp_path, content):
    config, made = fake.make_config(), fake.make_experiment()
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    evaluator = evaluate.Evaluator(setup.set_up(config, mesh, made), config.batch_size)
    whole = evaluator.baseline(config, tmp_path)
    (tmp_path / "baseline.json").write_text(content)
    assert evaluator.baseline(config, tmp_path) == whole


def test_jsonl_drops_lines_that_are_no_text(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 2}\n')
    writers.JsonlWriter(path, from_step=2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


class TwoSizes:
    """Pairs of examples of two sizes."""

    def __init__(self):
        self.parts = [
            fake.random_source(2, seed, size) for seed, size in ((2, (13, 20)), (3, (24, 9)))
        ]
        self.tasks, self.channels = self.parts[0].tasks, self.parts[0].channels
        self.class_names, self.size = {}, None

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.parts[index % 2][index // 2]


@pytest.mark.slow
def test_scores_at_the_original_resolution_are_those_of_predictions_resized_one_by_one(tmp_path):
    source = TwoSizes()
    original = data.OriginalLabels(source, fake.SIZE)
    assert original.frame == (24, 20) and original.size == fake.SIZE
    made = fake.make_experiment(eval_source=data.Resized(source, fake.SIZE))
    object.__setattr__(made, "original_source", original)
    config = fake.make_config(batch_size=2, eval_resolution="original")
    run = setup.set_up(config, parallel.make_mesh(devices=jax.devices()[:1]), made)
    evaluator = evaluate.Evaluator(run, 2, "original")
    scores = evaluator.score(run.placed.state, run.placed.constants)

    variables = states.join_variables(
        run.placed.state.params, run.placed.state.model_state, run.placed.constants
    )
    for task in made.tasks:
        metric, total = task.metric(), task.metric().empty()
        for i in range(3):
            example = source[i]
            seen = data.resize_image(example["image"], fake.SIZE, "cubic", antialias=True)
            logits = made.model.apply(variables, made.normalise(seen[None]))[task.name]
            logits = resize_bilinear(logits, *example["image"].shape[:2])
            label, valid = example["labels"][task.name], example["valid"][task.name]
            total = metric.merge(total, metric.update(logits, label[None], valid[None]))
        assert scores[task.name] == pytest.approx(metric.compute(total), rel=1e-5, nan_ok=True)

    assert "scored at their original size" in evaluator.seen
    baseline = evaluator.baseline(config, tmp_path)
    assert baseline["depth"] != evaluate.Evaluator(run, 2).baseline(config, tmp_path)["depth"]


def test_original_labels_need_images_of_one_size():
    with pytest.raises(DataError, match="image_size"):
        data.OriginalLabels(TwoSizes(), None)
