"""What the fine-tuned experts of the language study are worth pruned, merged and switched.

An expert is a whole MiniLM that was trained on one task, with the curvature that its training kept
and the head that it keeps. Everything is measured on the test splits of the tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language_plan import ATTENTION_TEXTS, DENSITIES, FISHER_TEXTS
from benchmarks.merging_agreement import dense, joined, margins, rank_correlation, top_overlap
from benchmarks.switching import T_SWITCH, WAYS, Alpha, Setting, point
from sinewich_jax import merging, optim
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.data import pipeline
from sinewich_jax.nn.fusion import Fuse
from sinewich_jax.nn.text import ENCODER
from sinewich_jax.storage import open_leaves
from sinewich_jax.train import evaluate, trained

Tree = Any
MAGNITUDE, TRAINING, FISHER = "magnitude", "curvature of training", "exact Fisher information"
RULES: dict[str, dict[str, Any]] = {
    "average": {},
    "task_arithmetic": {"scale": 0.3},
    "ties": {},
    "umtam": {},
    "curvature_average": {},
    "fisher": {},
}
"""Rules with the options that their papers recommend; none is tuned here."""

EMR = "emr"
BATCH = 32


class Expert:
    """A fine-tuned encoder with its head and its task's texts."""

    def __init__(self, workdir: Path) -> None:
        """Reads the run that trained it."""
        self.workdir = workdir
        self._run = trained.read_trained(workdir)
        self._params = self._run.variables["params"]
        self.encoder = self._params["backbone"]["encoder"]
        self.task = self._run.experiment.tasks[0]

    @property
    def base(self) -> Tree:
        """The encoder before the first step."""
        return unflatten_paths(_read(self.workdir, "start"))

    @property
    def curvature(self) -> Tree:
        """What training kept, by parameter of the encoder."""
        return unflatten_paths(_read(self.workdir, "merge"))

    def score(self, encoder: Tree) -> float:
        """The primary metric on the test texts of an encoder under this expert's head."""
        variables = {"params": {**self._params, "backbone": {"encoder": encoder}}}
        batches = pipeline.eval_batches(self._run.experiment.eval_source, BATCH).iterate()
        states = ({self.task.name: self._measure(variables, batch)} for batch in batches)
        found = evaluate.merge_states([self.task], states)
        return self.task.metric().compute(found[self.task.name])[self.task.primary]

    @functools.cached_property
    def _measure(self) -> Callable[[Tree, Any], Any]:
        model, name, metric = self._run.experiment.model, self.task.name, self.task.metric()

        def measure(variables: Tree, batch: Any) -> Any:
            logits = model.apply(variables, batch["text"])[name]
            return metric.update(logits, batch["labels"][name], batch["valid"][name])

        return jax.jit(measure)

    def fisher(self, count: int = FISHER_TEXTS) -> Tree:
        """The empirical Fisher information's diagonal over training texts, text by text."""
        source, model = self._run.experiment.train_source, self._run.experiment.model
        name = self.task.name
        examples = [source[i] for i in range(count)]
        texts = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *examples)

        def loss(encoder: Tree, example: Any) -> jax.Array:
            variables = {"params": {**self._params, "backbone": {"encoder": encoder}}}
            one = jax.tree.map(lambda array: array[None], example)
            logits = model.apply(variables, one["text"])[name]
            return self.task.loss(logits, one["labels"][name], one["valid"][name])

        squares = jax.jit(functools.partial(optim.per_example_squares, loss, chunk=1))
        return squares(self.encoder, texts)


def _read(workdir: Path, item: str) -> dict[str, np.ndarray]:
    with open_leaves(workdir, item) as source:
        return {
            name.removeprefix(ENCODER): source.read(name)
            for name in source.names
            if name.startswith(ENCODER)
        }


def agreement(workdir: Path) -> dict[str, Any]:
    """The curvature of training against the exact Fisher information, and pruning by both."""
    one = Expert(workdir)
    delta, fisher = merging.task_vector(one.encoder, one.base), one.fisher()
    sources = {MAGNITUDE: None, TRAINING: one.curvature, FISHER: fisher}
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten_paths(delta).items()}
    exact = dense(fisher, one.encoder)
    truth = joined({path: flat[path] ** 2 * exact[path] for path in exact})
    live = truth > 0  # words that no text has tie at zero, which any estimate gets right
    rows = {}
    estimates = {TRAINING: one.curvature, "rank one of the Fisher": margins(fisher)}
    for name, stats in estimates.items():
        found = dense(stats, one.encoder)
        scores = joined({path: flat[path] ** 2 * found[path] for path in found})
        rows[name] = _compared(scores, truth, live)
    sizes = joined({path: np.abs(leaf) for path, leaf in flat.items()})
    rows[MAGNITUDE] = _compared(sizes, truth, live)

    def pruned(stats: Tree, density: float) -> float:
        kept = merging.prune(delta, stats, density=density, scope="global")
        return one.score(merging.apply_task_vector(one.base, kept))

    return {
        "agreement": rows,
        "expert": one.score(one.encoder),
        "base": one.score(one.base),
        "pruning": {
            name: [pruned(stats, density) for density in DENSITIES]
            for name, stats in sources.items()
        },
    }


def _compared(scores: np.ndarray, truth: np.ndarray, live: np.ndarray) -> dict[str, float]:
    return {
        "live": rank_correlation(scores[live], truth[live]),
        "overlap": top_overlap(scores[live], truth[live]),
    }


def merged(workdirs: Mapping[str, Path], rules: Sequence[str] = tuple(RULES)) -> dict[str, Any]:
    """The experts of a seed under every rule, each with its own head: scores by rule and task."""
    experts = {task: Expert(path) for task, path in workdirs.items()}
    base = next(iter(experts.values())).base
    encoders = {task: one.encoder for task, one in experts.items()}
    stats = {
        "curvature": {task: one.curvature for task, one in experts.items()},
        "fisher": {task: one.fisher() for task, one in experts.items()},
    }
    found = {
        "experts": {task: one.score(one.encoder) for task, one in experts.items()},
        "base": {task: one.score(base) for task, one in experts.items()},
    }
    for rule in rules:
        needs = next(known.needs for known in merging.rules() if known.name == rule)
        own = {"stats": stats[needs[0]]} if needs else {}
        tree = merging.merge(rule, base, encoders, **own, **RULES[rule])
        found[rule] = {task: one.score(tree) for task, one in experts.items()}
    each = merging.merge(EMR, base, encoders)
    found[EMR] = {task: one.score(each.select(task)) for task, one in experts.items()}
    return found


def switched(workdirs: Mapping[str, Path], alphas: Sequence[Alpha]) -> dict[str, Any]:
    """T-Switch of the experts of a seed: scores, and bits a parameter on disk, by alpha."""
    experts = {task: Expert(path) for task, path in workdirs.items()}
    base = next(iter(experts.values())).base
    encoders = {task: one.encoder for task, one in experts.items()}
    setting = Setting(base, encoders, lambda task, tree: experts[task].score(tree))
    return {str(alpha): point(setting, WAYS[T_SWITCH], alpha) for alpha in alphas}


# --- fusion ---------------------------------------------------------------------------------------


def pruned_fusion(workdir: Path, texts: int = ATTENTION_TEXTS) -> dict[str, Any]:
    """Test scores of a fusion as its adapters are taken away, by how many stay; not trained again.

    The order is that of the mean attention over training texts, all layers alike; the control
    keeps those that are attended to least.
    """
    run = trained.read_trained(workdir)
    variables = jax.tree.map(jnp.asarray, run.variables)
    model, task = run.experiment.model, run.experiment.tasks[0]
    metric = task.metric()

    def score(names: tuple[str, ...]) -> float:
        @jax.jit
        def measure(variables: Tree, batch: Any) -> Any:
            logits = model.apply(variables, batch["text"], how=Fuse(names=names))[task.name]
            return metric.update(logits, batch["labels"][task.name], batch["valid"][task.name])

        batches = pipeline.eval_batches(run.experiment.eval_source, BATCH).iterate()
        found = evaluate.merge_states([task], ({task.name: measure(variables, b)} for b in batches))
        return metric.compute(found[task.name])[task.primary]

    @jax.jit
    def attended(variables: Tree, text: Any) -> jax.Array:
        places = model.apply(variables, text, method="encode").attention
        return sum(jnp.sum(p * text["mask"], axis=(1, 2, 3)) for p in places.values())

    source = run.experiment.train_source
    rows = [source[i]["text"] for i in range(min(texts, len(source)))]
    chunks = [rows[i : i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH)]
    total = sum(
        np.asarray(
            attended(variables, jax.tree.map(lambda *leaves: np.stack(leaves), *chunk)), np.float64
        )
        for chunk in chunks
    )
    order = [model.names[i] for i in np.argsort(-total, kind="stable")]
    counts = range(1, len(order) + 1)
    return {
        "order": order,
        "shares": dict(zip(model.names, (total / total.sum()).tolist(), strict=True)),
        "most": {str(n): score(tuple(order[:n])) for n in counts},
        "least": {str(n): score(tuple(order[-n:])) for n in counts},
    }
