"""Every loss weighting inside a real step: gradients, sharding, checkpoints, metrics."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinewich_jax import parallel
from sinewich_jax.core import surgery, trees, weighting
from sinewich_jax.data import pipeline
from sinewich_jax.errors import ConfigError
from sinewich_jax.train import loop, setup, signals, step
from tests.tiers import cases
from tests.train import fake

TASKS = len(fake.TASKS)
SHORT = {"steps_per_epoch": 2}
OPTIONS = {"gradnorm": SHORT, "dwa": SHORT}


class Descent(fake.FakeExperiment):
    """An experiment whose updates are minus the gradients."""

    def optimizer(self, config, abstract):
        return optax.sgd(1.0)


def make(rule: weighting.Weighting, devices: int = 1, own_rules=(), sgd=False, **mesh: int):
    config = fake.make_config(mesh=mesh)
    grid = parallel.make_mesh(**dataclasses.asdict(config.mesh), devices=jax.devices()[:devices])
    experiment = fake.make_experiment(weighting=rule, own_rules=own_rules)
    if sgd:
        fields = dataclasses.fields(experiment)
        experiment = Descent(**{field.name: getattr(experiment, field.name) for field in fields})
    made = setup.set_up(config, grid, experiment)
    return made, step.make_train_step(made.experiment, made.tx, made.placed, grid, config.seed)


def batches(count: int) -> list[dict]:
    experiment = fake.make_experiment()
    stream = pipeline.batches(experiment.train_source, fake.TASKS, 8, 0, experiment.augment)
    return [stream.batch_at(number) for number in range(count)]


def run(name: str, devices: int = 1, **mesh: int) -> list[dict[str, float]]:
    made, train = make(weighting.make(name, TASKS, **OPTIONS.get(name, {})), devices, **mesh)
    current, lines = made.placed.state, []
    for batch in batches(6):
        batch = parallel.put_batch(batch, made.mesh)
        current, metrics = train(current, made.placed.constants, batch)
        lines.append({key: float(value) for key, value in metrics.items()})
    return lines


# One of each kind in the fast tier: constant, of losses with a state, of gradients, looking back.
QUICK = ("fixed", "dwa", "cagrad", "famo")
EACH = cases(weighting.names(), fast=QUICK)


@pytest.mark.parametrize("name", EACH)
def test_eight_devices_weigh_as_one(name):
    alone, spread = run(name), run(name, 8, data=4, model=2)
    assert all(np.isfinite(list(line.values())).all() for line in alone)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=2e-4, atol=1e-5)
    weights = [[line.get(f"weight/{task}") for task in fake.TASKS] for line in alone]
    if name in ("fixed", "equal"):
        assert weights[0] == [None] * TASKS
    else:
        assert weights[0] != weights[-1]


def gradients(rule: weighting.Weighting, own_rules=()) -> tuple[dict, dict]:
    """The gradient of a first step by path, and the step's metrics."""
    made, train = make(rule, own_rules=own_rules, sgd=True)
    before = trees.flatten_paths(jax.tree.map(np.array, made.placed.state.params))
    batch = parallel.put_batch(batches(1)[0], made.mesh)
    after, metrics = train(made.placed.state, made.placed.constants, batch)
    after = trees.flatten_paths(after.params)
    return {path: before[path] - np.asarray(after[path]) for path in before}, metrics


def test_a_step_is_the_combination_of_the_gradients_of_single_tasks():
    # The gradients of the tasks one by one, from three runs of the plainest weighting.
    single = [gradients(weighting.make("fixed", TASKS, weights=row))[0] for row in np.eye(TASKS)]
    own = ("out_depth/.*",)
    found, metrics = gradients(weighting.make("cagrad", TASKS), own_rules=own)
    head = [path for path in found if path.startswith("out_depth/")]
    assert head and len(head) < len(found)
    shared = {p: jnp.stack([g[p] for g in single]) for p in found if p not in head}
    expected = surgery.cagrad(surgery.gram(shared))
    weights = [metrics[f"weight/{task}"] for task in fake.TASKS]
    np.testing.assert_allclose(weights, expected, rtol=1e-3)
    for path, gradient in surgery.combine(expected, shared).items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-5)
    for path in head:  # untouched by the weights
        plain = single[fake.TASKS.index("depth")][path]
        np.testing.assert_allclose(found[path], plain, rtol=1e-4, atol=1e-6)


def test_task_weights_come_before_any_weighting():
    doubled = tuple(
        dataclasses.replace(task, weight=2 * task.weight) for task in fake.make_experiment().tasks
    )
    experiment = fake.make_experiment(tasks=doubled)
    made = setup.set_up(
        fake.make_config(), parallel.make_mesh(devices=jax.devices()[:1]), experiment
    )
    train = step.make_train_step(experiment, made.tx, made.placed, made.mesh, 0)
    batch = parallel.put_batch(batches(1)[0], made.mesh)
    _, metrics = train(made.placed.state, made.placed.constants, batch)
    total = sum(task.weight * metrics[f"loss/{task.name}"] for task in doubled)
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["famo", "gradnorm"])
def test_a_stopped_run_goes_on_with_the_state_of_its_weighting(name, tmp_path, monkeypatch):
    rule = weighting.make(name, TASKS, **OPTIONS.get(name, {}))

    def train(folder):
        experiment = fake.make_experiment(weighting=rule)
        loop.train(fake.make_config(steps=6), tmp_path / folder, experiment, jax.devices()[:1])
        text = (tmp_path / folder / "metrics.jsonl").read_text()
        keys = ("loss", "weight/depth", "grad_norm")
        lines = [json.loads(line) for line in text.splitlines()]
        return [[line[key] for key in keys] for line in lines if "loss" in line]

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "agreed", lambda self, now, every: now == 3)
        assert train("stopped") == whole[:3]
    assert train("stopped") == whole


def test_the_config_names_the_weighting():
    from sinewich_jax.config import from_dict
    from sinewich_jax.train import build

    config = from_dict({"weighting": "cagrad", "weighting_options": {"c": 0.3}})
    assert build.experiment(config).weighting.needs_gram
    plain = build.experiment(from_dict({"weighting": "equal", "loss_weights": {"depth": 3.0}}))
    assert [task.weight for task in plain.tasks] == [1.0] * 6
    for wrong, message in (
        ({"weighting": "cagard"}, "did you mean 'cagrad'"),
        ({"weighting_options": {"c": 1.0}}, "'fixed' has no option 'c'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build.experiment(from_dict(wrong))
