"""Switching on scikit-learn's digits: six tasks on one network, the whole of which is switched.

The setting of the project's first study of T-Switch: images as they are, turned, mirrored,
inverted, with their pixels shuffled, and noisy; a network 64-512-512-10 with one head for all; a
base that has seen a few images of every task; experts that are the base trained on. The network
is a plain pytree.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.switching import WAYS, Alpha, Setting, front, learned_front
from benchmarks.switching_routes import Task, routed
from sinewich_jax import merging
from sinewich_jax.switches.flex import compress

Tree = Any
TASKS = ("upright", "turned", "mirrored", "inverted", "shuffled", "noisy")
LAYERS = ("layer0", "layer1", "head")
WIDTHS = (64, 512, 512, 10)
TRAINING_IMAGES = 1200
SETTINGS = {
    "base_steps": 150,
    "base_images": 100,
    "base_rate": 1e-3,
    "steps": 400,
    "rate": 3e-4,
    "batch": 64,
}


class Examples(NamedTuple):
    """Images [N, 64] in 0 to 1 and labels [N]."""

    x: np.ndarray
    y: np.ndarray


@functools.cache
def _digits() -> Examples:
    from sklearn.datasets import load_digits  # in the test extra only

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return Examples(np.float32(pixels[order] / 16), np.int32(labels[order]))


@functools.cache
def images(task: str, split: str) -> Examples:
    """The images and labels of a task; split, shuffle and noise are the same for all seeds."""
    part = slice(None, TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
    x, y = (array[part] for array in _digits())
    square, rng = x.reshape(-1, 8, 8), np.random.default_rng(1)
    shuffle = rng.permutation(x.shape[1])
    if task == "turned":
        x = np.rot90(square, axes=(1, 2)).reshape(x.shape)
    elif task == "mirrored":
        x = square[:, :, ::-1].reshape(x.shape)
    elif task == "inverted":
        x = 1 - x
    elif task == "shuffled":
        x = x[:, shuffle]
    elif task == "noisy":
        x = x + np.float32(0.3) * rng.standard_normal(x.shape, np.float32)
    return Examples(x, y)


# --- network and training -----------------------------------------------------------------------


def fresh(seed: int) -> Tree:
    """A network with He's initial weights."""
    rng = np.random.default_rng(seed)

    def layer(inputs: int, outputs: int) -> Tree:
        kernel = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        return {"kernel": np.float32(kernel), "bias": np.zeros(outputs, np.float32)}

    return {name: layer(*WIDTHS[i : i + 2]) for i, name in enumerate(LAYERS)}


def features(params: Tree, x: jax.Array) -> jax.Array:
    """What the head reads [N, 512]."""
    for name in LAYERS[:-1]:
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x


def logits(params: Tree, x: jax.Array) -> jax.Array:
    """The network."""
    head = params["head"]
    return features(params, x) @ head["kernel"] + head["bias"]


def batches(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Indices [steps, batch]: whole passes over the images in random order."""
    rng = np.random.default_rng((seed, steps))
    passes = -(-steps * batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[: steps * batch].reshape(steps, batch)


@functools.partial(jax.jit, static_argnames="rate")
def train(params: Tree, data: Examples, order: jax.Array, rate: float) -> Tree:
    """Adam over the batches of ``order``."""
    tx = optax.adam(rate)

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        scores = logits(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    def step(carry: tuple[Tree, Any], rows: jax.Array) -> tuple[tuple[Tree, Any], None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, data.x[rows], data.y[rows]), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]


def base(seed: int, steps: int, count: int, rate: float, batch: int) -> Tree:
    """A short training on a few images of every task."""
    few = [Examples(*(array[:count] for array in images(t, "train"))) for t in TASKS]
    mix = Examples(*map(np.concatenate, zip(*few, strict=True)))
    order = batches(len(mix.y), steps, batch, seed)
    return _on_host(train(fresh(seed), _on_device(mix), order, rate))


def expert(task: str, start: Tree, seed: int, steps: int, rate: float, batch: int) -> Tree:
    """The base trained on all images of one task."""
    data = images(task, "train")
    order = batches(len(data.y), steps, batch, seed)
    return _on_host(train(start, _on_device(data), order, rate))


def _on_device(data: Examples) -> Examples:
    return Examples(*map(jnp.asarray, data))


def _on_host(tree: Tree) -> Tree:
    return jax.tree.map(np.asarray, tree)


@jax.jit
def _correct(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    return (logits(params, x).argmax(-1) == y).mean()


def score(task: str, params: Tree, split: str = "test") -> float:
    """The share of a task's images whose class is the most probable."""
    return float(_correct(params, *images(task, split)))


# --- what is measured -----------------------------------------------------------------------------

SCALES = (0.05, 0.1, 0.2, 0.3)


def setting(seed: int, training: Mapping[str, Any]) -> Setting:
    """The base of a seed and its six experts, trained here in seconds; see :data:`SETTINGS`."""
    begin = [training[f"base_{key}"] for key in ("steps", "images", "rate")]
    start = base(seed, *begin, training["batch"])
    on = {key: training[key] for key in ("steps", "rate", "batch")}
    return Setting(start, {task: expert(task, start, seed, **on) for task in TASKS}, score)


def measure(
    seed: int, training: Mapping[str, Any], alphas: Sequence[Alpha], router: Mapping[str, Any]
) -> dict[str, Any]:
    """All of one seed but what has to be learned."""
    one = setting(seed, training)
    return {
        "individual": {task: score(task, tree) for task, tree in one.experts.items()},
        "base": {task: score(task, one.base) for task in TASKS},
        "rules": rules(one),
        "fronts": {name: front(one, way, alphas) for name, way in WAYS.items()},
        "router": auto_switch(one, **router),
    }


def rules(one: Setting) -> dict[str, Any]:
    """Merged models; of task arithmetic the scale that is best on the test images themselves."""

    def mean(found: Mapping[str, float]) -> float:
        return float(np.mean(list(found.values())))

    sums = {
        scale: _scores(merging.merge("task_arithmetic", one.base, one.experts, scale=scale))
        for scale in SCALES
    }
    best = max(sums, key=lambda scale: mean(sums[scale]))
    emr = merging.merge("emr", one.base, one.experts)
    return {
        "average": {"test": _scores(merging.merge("average", one.base, one.experts))},
        "task_arithmetic": {"test": sums[best], "options": {"scale": best}},
        "emr": {"test": {task: score(task, emr.select(task)) for task in TASKS}},
    }


def _scores(tree: Tree) -> dict[str, float]:
    return {task: score(task, tree) for task in TASKS}


def auto_switch(one: Setting, examples: int, neighbours: int, alpha: Alpha) -> dict[str, Any]:
    """Auto-Switch; all tasks share one head, so that no head has to be chosen."""
    look = jax.jit(features)
    tasks = {}
    for task in TASKS:
        test = images(task, "test")
        query = look(one.base, images(task, "train").x[:examples])
        tasks[task] = Task(np.asarray(query), test.x, np.asarray(look(one.base, test.x)), test.y)

    def correct(outputs: np.ndarray, _: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return outputs.argmax(-1) == labels[:, 1]

    return routed(one, jax.jit(logits), correct, tasks, alpha, neighbours)


def learned(
    seed: int, training: Mapping[str, Any], price: float, steps: int, examples: int
) -> dict[str, Any]:
    """FlexSwitch-style switches, distilled on training images without their labels."""
    one = setting(seed, training)

    def learn(task: str, delta: Tree) -> Any:
        x = images(task, "train").x[:examples]
        return compress(one.base, delta, logits, x, steps=steps, bytes_weight=price)

    return learned_front(one, learn)
