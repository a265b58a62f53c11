"""What switches and routes are worth, measured: six tasks of scikit-learn's digits, three seeds.

digits.py says how the experts are made. The thresholds are those of the study that this room was
planned on, whose network, tasks and steps these are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn brings the digits; it is in the test extra")

from sinewich_jax import merging
from sinewich_jax.core.trees import count, map_paths
from sinewich_jax.switches import codecs
from sinewich_jax.switches.apply import apply_switch
from sinewich_jax.switches.dispatch import Dispatcher
from sinewich_jax.switches.leaf import DenseLeaf, Switch
from sinewich_jax.switches.make import make_switch
from sinewich_jax.switches.metric import fit_metric
from sinewich_jax.switches.protocols import Examples, Protocols, evaluate_protocols
from sinewich_jax.switches.queries import build_query_set
from sinewich_jax.switches.router import Router
from tests.switches import digits

pytestmark = pytest.mark.slow


class Run(NamedTuple):
    """The accuracies of one seed (means over tasks), routing by protocol, bits of the switches."""

    individual: float
    emr: float
    switched: dict[Any, float]
    masked: dict[Any, float]
    bits: float
    plain: Protocols
    learned: Protocols


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return [measure(seed) for seed in (0, 1, 2)]


def measure(seed: int) -> Run:
    base, experts, train, test = digits.family(seed)
    deltas = {name: merging.task_vector(expert, base) for name, expert in experts.items()}
    switches = {
        alpha: {
            name: make_switch(delta, alpha=alpha, knob="l1" if alpha == "auto" else "l2_kept")
            for name, delta in deltas.items()
        }
        for alpha in (0.6, 0.7, "auto")
    }
    emr = merging.merge("emr", base, experts)
    switched = {
        alpha: digits.accuracy({name: apply_switch(base, s) for name, s in by_task.items()}, test)
        for alpha, by_task in switches.items()
    }
    masked = {
        alpha: digits.accuracy(
            {name: only(base, deltas[name], s) for name, s in by_task.items()}, test
        )
        for alpha, by_task in switches.items()
    }
    plain, learned = routed(base, switches[0.6], train, test)
    return Run(
        individual=digits.accuracy(experts, test),
        emr=digits.accuracy({name: emr.select(name) for name in experts}, test),
        switched=switched,
        masked=masked,
        bits=float(np.mean([stored_bits(switch) for switch in switches[0.6].values()]))
        / count(base),
        plain=plain,
        learned=learned,
    )


def only(base: Any, delta: Any, switch: Switch) -> Any:
    """P-Discard: the task vector in full precision wherever the switch is active."""
    flat = {path: leaf.mask for path, leaf in switch.leaves.items()}

    def leaf(path: str, entry: np.ndarray) -> np.ndarray:
        active = np.unpackbits(flat[path], count=entry.size, bitorder="little")
        first, second = path.split("/")
        return entry + delta[first][second] * active.reshape(entry.shape)

    return map_paths(leaf, base)


def stored_bits(switch: Switch) -> int:
    """Bits of the blobs and knobs of one task, as a bank writes them."""
    total = 0
    for leaf in switch.leaves.values():
        assert not isinstance(leaf, DenseLeaf)
        size = int(np.prod(leaf.shape))
        signs = codecs.gather(leaf.sign, leaf.mask, size)
        total += 8 * (len(codecs.encode_mask(leaf.mask, size)[1]) + len(signs) + leaf.knob.nbytes)
    return total


def routed(base: Any, switches: dict, train: digits.Split, test: digits.Split) -> list[Protocols]:
    """Protocols with the plain metric and with a learned one."""
    features = jax.jit(digits.features)
    batches = {name: [train.images[i]] for i, name in enumerate(digits.TASKS)}
    queries = build_query_set(lambda images: features(base, images), batches, n=100)
    dispatcher = Dispatcher(jax.jit(digits.logits), base, switches)
    tasks = {
        name: Examples(images, np.asarray(features(base, images)), test.labels)
        for name, images in zip(digits.TASKS, test.images, strict=True)
    }
    return [
        evaluate_protocols(
            lambda images, weights: dispatcher(images, weights).outputs,
            lambda scores, heads, labels: scores.argmax(axis=1) == labels,
            Router.fit(queries, projection=projection),
            tasks,
        )
        for projection in (None, fit_metric(queries))
    ]


def gaps(runs: list[Run], first: Any, second: Any) -> np.ndarray:
    return np.array([first(run) - second(run) for run in runs])


def test_switches_are_as_good_as_the_experts(runs):
    assert gaps(runs, lambda r: r.switched[0.6], lambda r: r.individual).min() >= -0.01
    assert gaps(runs, lambda r: r.switched["auto"], lambda r: r.individual).min() >= -0.015


def test_switches_are_better_than_one_elected_vector(runs):
    assert gaps(runs, lambda r: r.switched[0.6], lambda r: r.emr).min() >= 0.03


def test_a_sign_is_worth_as_much_as_the_number(runs):
    assert gaps(runs, lambda r: r.switched[0.7], lambda r: r.masked[0.7]).mean() >= 0


def test_a_task_takes_less_than_a_bit_and_a_half_a_parameter(runs):
    assert all(run.bits <= 1.42 for run in runs)


def test_each_sample_finds_its_task_well_enough(runs):
    assert all(run.plain.rows["per_sample"].accuracy >= 0.915 for run in runs)


def test_the_published_protocol_is_the_lenient_one(runs):
    lenient = gaps(
        runs,
        lambda r: r.plain.rows["batch_mean"].accuracy,
        lambda r: r.plain.rows["per_sample"].accuracy,
    )
    assert lenient.min() >= 0 and lenient.max() <= 0.03
    for run in runs:
        assert run.plain.rows["oracle"].accuracy == pytest.approx(run.switched[0.6], abs=1e-3)
        assert run.plain.rows["per_sample"].multiplier > run.plain.rows["batch_mean"].multiplier


def test_a_learned_metric_finds_more_tasks(runs):
    gained = gaps(
        runs,
        lambda r: r.learned.rows["per_sample"].task_accuracy,
        lambda r: r.plain.rows["per_sample"].task_accuracy,
    )
    assert gained.min() >= 0.03
