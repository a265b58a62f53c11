"""Merging on scikit-learn's digits: four tasks on one small network, seconds a training.

Whether the curvature that training leaves behind is that of the exact Fisher information, what it
is worth for pruning, and what for merging four experts. The network is a plain pytree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.merging_agreement import dense, joined, margins, rank_correlation, top_overlap
from sinewich_jax import merging, optim
from sinewich_jax.core.curvature import Diagonal
from sinewich_jax.core.trees import flatten_paths, map_paths
from sinewich_jax.merging.statistics import by_leaf
from sinewich_jax.optim import trajectory

Tree = Any
TASKS = {"upright": 10, "turned": 10, "mirrored": 10, "parity": 2}
"""Tasks with their number of classes: the digit of an image that stands, lies or is mirrored, and
whether the digit is odd."""

WIDTHS = (64, 128, 64)
TRUNK = ("layer0", "layer1")
TRAINING_IMAGES = 1200
SETTINGS = {"rate": 1e-3, "batch": 32, "base_steps": 150, "base_images": 300}
ESTIMATES = (
    "factored",
    "running mean",
    "per-example squares",
    "Adam's own",
    "rank one of the Fisher",
    "root of sums",
    "trajectory",
    "magnitude",
)
"""What is compared with the exact Fisher information; the first is what ``with_merge_stats`` keeps.
"""
DENSITIES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


class Examples(NamedTuple):
    """Images [N, 64] in 0 to 1 and labels [N]."""

    x: jax.Array
    y: jax.Array


class Expert(NamedTuple):
    """A trained network and all that was kept beside its training.

    Attributes:
      base: what it started from.
      params: what it became.
      curvatures: by the name of the estimate, trees of curvature or of dense second moments.
      trajectory: the saliency that was averaged on the way.
    """

    base: Tree
    params: Tree
    curvatures: dict[str, Tree]
    trajectory: Tree


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # in the test extra only

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return np.float32(pixels[order] / 16).reshape(-1, 8, 8), np.int32(labels[order])


def examples(task: str, split: str) -> Examples:
    """The images and labels of a task; the split is the same for all."""
    pixels, labels = _digits()
    part = slice(None, TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
    pixels, labels = pixels[part], labels[part]
    if task == "turned":
        pixels = np.rot90(pixels, axes=(1, 2))
    elif task == "mirrored":
        pixels = pixels[:, :, ::-1]
    elif task == "parity":
        labels = labels % 2
    return Examples(jnp.asarray(pixels.reshape(-1, 64)), jnp.asarray(labels))


# --- network and training -----------------------------------------------------------------------


def fresh(classes: int, seed: int) -> Tree:
    """A network 64-128-64-classes with He's initial weights."""
    rng = np.random.default_rng(seed)
    sizes = zip((*TRUNK, "head"), WIDTHS, (*WIDTHS[1:], classes), strict=True)

    def layer(inputs: int, outputs: int) -> Tree:
        kernel = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(outputs)}

    return {name: layer(inputs, outputs) for name, inputs, outputs in sizes}


def logits(params: Tree, x: jax.Array) -> jax.Array:
    """The network."""
    for name in TRUNK:
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def loss_of(params: Tree, example: Examples) -> jax.Array:
    """Cross entropy of one example, or the mean over a batch."""
    scores = logits(params, example.x)
    return optax.softmax_cross_entropy_with_integer_labels(scores, example.y).mean()


@jax.jit
def accuracy(params: Tree, data: Examples) -> jax.Array:
    """The fraction of images whose class is the most probable."""
    return (logits(params, data.x).argmax(-1) == data.y).mean()


def batches(count: int, steps: int, batch: int, seed: int) -> jax.Array:
    """Indices [steps, batch]: whole passes over the images in random order."""
    rng = np.random.default_rng((seed, steps))
    passes = -(-steps * batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return jnp.asarray(order[: steps * batch].reshape(steps, batch))


def train(
    tx: optax.GradientTransformation, params: Tree, data: Examples, order: jax.Array
) -> tuple[Tree, Any]:
    """Parameters and optimizer state after a pass over ``order``; traceable."""

    def step(carry: tuple[Tree, Any], rows: jax.Array) -> tuple[tuple[Tree, Any], None]:
        params, state = carry
        batch = jax.tree.map(lambda array: array[rows], data)
        updates, state = tx.update(jax.grad(loss_of)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), order)[0]


@functools.cache
def base_trunk(seed: int) -> Tree:
    """The trunk that all experts of a seed start from: a short training on a few images."""
    x = jnp.concatenate([examples(task, "train").x[: SETTINGS["base_images"]] for task in TASKS])
    y = jnp.concatenate([examples("upright", "train").y[: SETTINGS["base_images"]] for _ in TASKS])
    order = batches(len(y), SETTINGS["base_steps"], SETTINGS["batch"], seed)
    tx = optax.adam(SETTINGS["rate"])
    params, _ = jax.jit(functools.partial(train, tx))(fresh(10, seed), Examples(x, y), order)
    return {name: params[name] for name in TRUNK}


def start(task: str, seed: int) -> Tree:
    """The base with a head of the task's own."""
    return {**base_trunk(seed), "head": fresh(TASKS[task], seed + 1000)["head"]}


# --- what training keeps, against the exact Fisher information ----------------------------------


def tracked(rate: float) -> optax.GradientTransformationExtraArgs:
    """AdamW with four trackers, one in the other: updates are AdamW's, bit for bit."""
    tx: Any = optax.adamw(rate)
    tx = optim.with_merge_stats(tx, saliency="trajectory")
    tx = optim.with_merge_stats(tx, decay=lambda count: 1 - 1 / (count + 1))
    return optim.with_merge_stats(tx)  # of the squares of single examples


@functools.partial(jax.jit, static_argnames="rate")
def _train_tracked(params: Tree, data: Examples, order: jax.Array, rate: float) -> tuple[Tree, Any]:
    tx = tracked(rate)

    def update(grads: Tree, state: Any, params: Tree, batch: Examples) -> tuple[Tree, Any]:
        squares = optim.per_example_squares(loss_of, params, batch)
        return tx.update(grads, state, params, merge_sq=squares)

    def step(carry: tuple[Tree, Any], rows: jax.Array) -> tuple[tuple[Tree, Any], None]:
        params, state = carry
        batch = jax.tree.map(lambda array: array[rows], data)
        updates, state = update(jax.grad(loss_of)(params, batch), state, params, batch)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), order)[0]


@jax.jit
def exact_fisher(params: Tree, data: Examples) -> Tree:
    """The empirical Fisher information's diagonal over all examples."""
    return optim.per_example_squares(loss_of, params, data, chunk=100)


def expert(task: str, seed: int, steps: int) -> Expert:
    """Trains one task; every estimate of curvature is of this one training."""
    data, base = examples(task, "train"), start(task, seed)
    order = batches(TRAINING_IMAGES, steps, SETTINGS["batch"], seed)
    params, state = _train_tracked(base, data, order, SETTINGS["rate"])
    fisher = exact_fisher(params, data)
    factored = optim.export_stats(state.inner.inner)
    found = {
        "factored": factored,
        "running mean": optim.export_stats(state.inner),
        "per-example squares": optim.export_stats(state),
        "root of sums": map_shaped(root_of_sums, factored, params),
        "Adam's own": optax.tree.get(state, "nu"),
        "rank one of the Fisher": margins(fisher),
        "exact Fisher": fisher,
    }
    return Expert(base, params, found, optim.export_saliency(state.inner.inner))


def map_shaped(function: Callable[..., Any], stats: Tree, params: Tree) -> Tree:
    """``function(curvature, shape)`` of every leaf."""
    found = by_leaf(stats)
    return map_paths(lambda path, leaf: function(found[path], leaf.shape), params)


def root_of_sums(curvature: Any, shape: tuple[int, ...]) -> jax.Array:
    """The paper's ``sqrt(R C^T)``, of small leaves the root of the second moment."""
    if isinstance(curvature, Diagonal):
        return jnp.sqrt(curvature.diag)
    return trajectory.root_of_sums(jnp.ones(shape), curvature)


def agreement(one: Expert) -> dict[str, dict[str, float]]:
    """Every estimate against the exact Fisher information, as curvature and as saliency."""
    delta = flatten_paths(merging.task_vector(one.params, one.base))
    delta = {path: np.asarray(leaf, np.float64) for path, leaf in delta.items()}
    exact = dense(one.curvatures["exact Fisher"], one.params)
    truth = joined({path: delta[path] ** 2 * exact[path] for path in exact})
    rows = {}
    for name, stats in one.curvatures.items():
        if name == "exact Fisher":
            continue
        found = dense(stats, one.params)
        kernels = [
            rank_correlation(found[p].ravel(), exact[p].ravel()) for p in found if delta[p].ndim > 1
        ]
        rows[name] = {
            **_compared(joined({p: delta[p] ** 2 * found[p] for p in found}), truth),
            "curvature": rank_correlation(joined(found), joined(exact)),
            "curvature, least of a kernel": min(kernels),
        }
    along = {path: np.asarray(leaf) for path, leaf in flatten_paths(one.trajectory).items()}
    rows["trajectory"] = _compared(joined(along), truth)
    rows["magnitude"] = _compared(joined({p: np.abs(leaf) for p, leaf in delta.items()}), truth)
    return rows


def _compared(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    live = truth > 0  # weights of dark pixels tie at zero, which any estimate gets right
    return {
        "saliency": rank_correlation(scores, truth),
        "live": rank_correlation(scores[live], truth[live]),
        "overlap": top_overlap(scores, truth),
    }


# --- what it is worth ---------------------------------------------------------------------------

PRUNED_BY = {"magnitude": None, "curvature": "factored", "exact Fisher": "exact Fisher"}


def pruning(task: str, one: Expert) -> dict[str, list[float]]:
    """Test accuracy at each of :data:`DENSITIES` when the rest of the change is taken back."""
    delta, data = merging.task_vector(one.params, one.base), examples(task, "test")

    def score(source: str | None, density: float) -> float:
        stats = None if source is None else one.curvatures[source]
        kept = merging.prune(delta, stats, density=density, scope="global")
        return float(accuracy(merging.apply_task_vector(one.base, kept), data))

    return {name: [score(s, density) for density in DENSITIES] for name, s in PRUNED_BY.items()}


MERGED_BY = {
    "average": ("average", None),
    "ties": ("ties", None),
    "umtam": ("umtam", "factored"),
    "curvature_average": ("curvature_average", "factored"),
    "curvature_average, per-example": ("curvature_average", "per-example squares"),
    "fisher": ("fisher", "exact Fisher"),
}


def merged(experts: Mapping[str, Expert], rules: Sequence[str] = ()) -> dict[str, float]:
    """Mean test accuracy of the merged trunk under every task's own head, by row."""
    first = next(iter(experts.values()))
    base, trunks = _trunk(first.base), {name: _trunk(one.params) for name, one in experts.items()}

    def score(rule: str, source: str | None) -> float:
        stats = source and {n: _trunk(one.curvatures[source]) for n, one in experts.items()}
        tree = merging.merge(rule, base, trunks, stats=stats)
        scores = [
            accuracy({**tree, "head": one.params["head"]}, examples(name, "test"))
            for name, one in experts.items()
        ]
        return float(np.mean(scores))

    return {name: score(*MERGED_BY[name]) for name in rules or MERGED_BY}


def _trunk(tree: Tree) -> Tree:
    return {name: tree[name] for name in TRUNK}


def measure(seed: int, steps: int, tasks: Sequence[str] = tuple(TASKS)) -> dict[str, Any]:
    """Everything above for the experts of one seed."""
    experts = {task: expert(task, seed, steps) for task in tasks}
    return {
        "tasks": {
            task: {
                "accuracy": float(accuracy(one.params, examples(task, "test"))),
                "agreement": agreement(one),
                "pruning": pruning(task, one),
            }
            for task, one in experts.items()
        },
        "merging": merged(experts),
    }
