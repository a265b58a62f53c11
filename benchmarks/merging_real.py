"""Merging eight real classification tasks: one base trained without labels, eight experts.

The trunk is a small convolutional network without batch statistics, so that an average of weights
is an average of all there is. Every task keeps a head of its own, which starts from a linear probe
of the base; heads are never merged. Images are read from ``cls/`` in the folder that the
environment variable SINEWICH_DATA names.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cells import load_arrays, save_arrays
from benchmarks.merging_agreement import dense, joined, margins, rank_correlation
from sinewich_jax import merging, optim
from sinewich_jax.core.trees import flatten_paths, unflatten_paths
from sinewich_jax.errors import DataError

Tree = Any
TASKS = (
    "mnist", "notmnist", "omniglot_alphabet", "signdigits",
    "clothing", "eurosat", "gtsrb", "cifar10",
)  # fmt: skip
TUNING_TASKS = ("mnist", "gtsrb", "cifar10")
RATES = (3e-4, 1e-3, 3e-3)
BASE = {"width": 32, "steps": 2500, "batch": 64, "rate": 2e-3}
EXPERT = {"steps": 400, "batch": 64, "probe_steps": 300, "fisher": 256}
MERGE = {"val": 256, "adamerging_steps": 100}
ADAMERGING_RATE = 1e-2
CHUNK = 128
SHIFT = 3


class Images(NamedTuple):
    """Images [N, 32, 32, 3] as bytes and labels [N]."""

    x: np.ndarray
    y: np.ndarray


def folder() -> Path | None:
    """Where the tasks lie, or None where the environment does not say."""
    root = os.environ.get("SINEWICH_DATA")
    return Path(root) / "cls" if root else None


@functools.cache
def load(task: str, split: str) -> Images:
    """One split of a task; gray images get three equal channels."""
    where = folder()
    if where is None or not (where / f"{task}.npz").is_file():
        raise DataError(
            f"there is no cls/{task}.npz in the folder that SINEWICH_DATA names, which is "
            f"{os.environ.get('SINEWICH_DATA')!r}; set it to the folder of the real data sets"
        )
    with np.load(where / f"{task}.npz") as file:
        x, y = file[f"{split}_x"], file[f"{split}_y"]
    return Images(np.repeat(x, 3 // x.shape[-1], axis=-1), y.astype(np.int32))


def class_count(task: str) -> int:
    """How many classes a task has."""
    return int(load(task, "train").y.max()) + 1


# --- network ------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block: norm, relu and convolution, twice."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, width] to the same."""
        y = x
        for i in range(2):
            y = nn.relu(nn.GroupNorm(num_groups=8, name=f"norm{i}")(y))
            y = nn.Conv(self.width, (3, 3), name=f"conv{i}")(y)
        return x + y


class Trunk(nn.Module):
    """Bytes [N, 32, 32, 3] to a map of features [N, 4, 4, 4 width]."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The map."""
        x = x.astype(jnp.float32) / 127.5 - 1
        for i, factor in enumerate((1, 2)):
            x = nn.Conv(factor * self.width, (3, 3), strides=2, name=f"down{i}")(x)
            x = Block(factor * self.width, name=f"block{i}")(x)
        for name, stride in (("down2", 2), ("last", 1)):
            x = nn.Conv(4 * self.width, (3, 3), strides=stride, name=name)(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, name=f"{name}_norm")(x))
        return x


def maps(trunk: Tree, x: jax.Array) -> jax.Array:
    """The trunk; its width is that of its first kernel."""
    return Trunk(trunk["down0"]["kernel"].shape[-1]).apply({"params": trunk}, x)


def pooled(trunk: Tree, x: jax.Array) -> jax.Array:
    """Features [N, 4 width]."""
    return maps(trunk, x).mean(axis=(1, 2))


def linear(head: Tree, x: jax.Array) -> jax.Array:
    """A linear layer."""
    return x @ head["kernel"] + head["bias"]


def zeros(inputs: int, outputs: int) -> Tree:
    """A linear layer that knows nothing."""
    return {"kernel": jnp.zeros((inputs, outputs)), "bias": jnp.zeros(outputs)}


@jax.jit
def _chunk(trunk: Tree, x: jax.Array) -> jax.Array:
    return pooled(trunk, x)


def features(trunk: Tree, x: np.ndarray) -> np.ndarray:
    """:func:`pooled` of any number of images, compiled once."""
    found = []
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0), (0, 0), (0, 0)))
        found.append(np.asarray(_chunk(trunk, padded))[: len(part)])
    return np.concatenate(found)


def score(trunk: Tree, head: Tree, data: Images) -> float:
    """Accuracy."""
    scores = linear(jax.tree.map(np.asarray, head), features(trunk, data.x))
    return float((scores.argmax(-1) == data.y).mean())


# --- the base -----------------------------------------------------------------------------------


def pooled_images(split: str) -> np.ndarray:
    """The images of all tasks, without labels."""
    return np.concatenate([load(task, split).x for task in TASKS])


def puzzles(x: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Turned images, the same with noise and a hole, and by how many quarters they are turned."""
    rows, quarters = rng.integers(len(x), size=batch), rng.integers(4, size=batch)
    clean = x[rows]
    for k in (1, 2, 3):
        clean[quarters == k] = np.rot90(clean[quarters == k], k, axes=(1, 2))
    noisy = clean + rng.normal(0, 25, clean.shape)
    for image, (top, left) in zip(noisy, rng.integers(0, 24, size=(batch, 2)), strict=True):
        image[top : top + 8, left : left + 8] = 127.5
    return clean, np.clip(noisy, 0, 255).astype(np.uint8), quarters


def restored(params: Tree, found: jax.Array) -> jax.Array:
    """Images [N, 32, 32, 3] in -1 to 1 out of the map of features."""
    cells = linear(params["restore"], found).reshape(-1, 4, 4, 8, 8, 3)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)


def base_losses(params: Tree, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple]:
    """Cross entropy of the turn plus the squared error of the restored image; both apart."""
    clean, noisy, quarters = batch
    found = maps(params["trunk"], noisy)
    turns = linear(params["turn"], found.mean(axis=(1, 2)))
    entropy = optax.softmax_cross_entropy_with_integer_labels(turns, quarters).mean()
    error = jnp.square(restored(params, found) - (clean / 127.5 - 1)).mean()
    return entropy + error, ((turns.argmax(-1) == quarters).mean(), error)


def pretrain(path: Path, seed: int, width: int, steps: int, batch: int, rate: float) -> dict:
    """Trains the base on the pooled training images of all tasks; writes the trunk to ``path``."""
    rng = np.random.default_rng(seed)
    images = pooled_images("train")
    trunk = Trunk(width).init(jax.random.key(seed), images[:1])["params"]
    params = {"trunk": trunk, "turn": zeros(4 * width, 4), "restore": zeros(4 * width, 192)}
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps)
    tx = optax.adamw(schedule)
    state = tx.init(params)

    @jax.jit
    def step(params: Tree, state: Any, batch: Any) -> tuple[Tree, Any]:
        grads, _ = jax.grad(base_losses, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    begin = time.monotonic()
    for _ in range(steps):
        params, state = step(params, state, puzzles(images, batch, rng))
    jax.block_until_ready(params)
    seconds = time.monotonic() - begin
    save_arrays(path, params["trunk"])
    unseen = pooled_images("val")
    clean, noisy, quarters = puzzles(unseen, min(1024, len(unseen)), np.random.default_rng(0))
    _, (turns, error) = jax.jit(base_losses)(params, (clean, noisy, quarters))
    return {
        "turn": float(turns),
        "error": float(error),
        "variance": float(np.var(clean / 127.5 - 1)),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trunk)),
        "seconds": seconds,
    }


# --- experts ------------------------------------------------------------------------------------


def probe(trunk: Tree, data: Images, classes: int, steps: int) -> Tree:
    """A linear head on frozen features: full batches on standardised features, folded back."""
    x = features(trunk, data.x)
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    standard, y = jnp.asarray((x - mean) / spread), jnp.asarray(data.y)
    tx = optax.adamw(1e-2, weight_decay=1e-3)

    def loss(head: Tree) -> jax.Array:
        scores = linear(head, standard)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    def step(_: int, carry: tuple[Tree, Any]) -> tuple[Tree, Any]:
        head, state = carry
        updates, state = tx.update(jax.grad(loss)(head), state, head)
        return optax.apply_updates(head, updates), state

    head = zeros(x.shape[1], classes)
    head, _ = jax.jit(lambda h: jax.lax.fori_loop(0, steps, step, (h, tx.init(h))))(head)
    kernel = head["kernel"] / spread[:, None]
    return {"kernel": kernel, "bias": head["bias"] - mean @ kernel}


def shifted(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to :data:`SHIFT` pixels, its edges repeated."""
    padded = np.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    moves = rng.integers(0, 2 * SHIFT + 1, size=(len(x), 2))
    size = x.shape[1]
    return np.stack(
        [image[i : i + size, j : j + size] for image, (i, j) in zip(padded, moves, strict=True)]
    )


def expert_loss(params: Tree, batch: Images) -> jax.Array:
    """Mean cross entropy."""
    scores = linear(params["head"], pooled(params["trunk"], batch.x))
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch.y).mean()


def example_loss(params: Tree, example: Images) -> jax.Array:
    """The loss of one image."""
    return expert_loss(params, Images(example.x[None], example.y[None]))


def rounds(data: Images, steps: int, batch: int, seed: int) -> Iterator[Images]:
    """``steps`` batches: whole passes over the images, each image moved a little."""
    rng = np.random.default_rng((seed, 1))
    order = np.concatenate(
        [rng.permutation(len(data.y)) for _ in range(-(-steps * batch // len(data.y)))]
    )
    for rows in order[: steps * batch].reshape(steps, batch):
        yield Images(shifted(data.x[rows], rng), data.y[rows])


def train_expert(
    params: Tree, data: Images, rate: float, steps: int, batch: int, seed: int
) -> tuple[Tree, Any, float]:
    """Fine-tunes trunk and head; gives them, the optimizer's state and the seconds it took."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    tx = optim.with_merge_stats(optax.adamw(schedule))
    state = tx.init(params)

    @jax.jit
    def step(params: Tree, state: Any, batch: Images) -> tuple[Tree, Any]:
        updates, state = tx.update(jax.grad(expert_loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    begin = time.monotonic()
    for one in rounds(data, steps, batch, seed):
        params, state = step(params, state, one)
    jax.block_until_ready(params)
    return params, state, time.monotonic() - begin


def fine_tune(
    path: Path,
    base: Path,
    task: str,
    seed: int,
    rate: float,
    steps: int,
    batch: int,
    probe_steps: int,
    fisher: int,
) -> dict[str, Any]:
    """One expert, with what merging reads of it; ``fisher`` of 0 leaves the statistics out."""
    data, trunk = load(task, "train"), load_arrays(base)
    head = probe(trunk, data, class_count(task), probe_steps)
    start = {"trunk": trunk, "head": head}
    params, state, seconds = train_expert(start, data, rate, steps, batch, seed)
    found = {
        "probe": {split: score(trunk, head, load(task, split)) for split in ("val", "test")},
        "expert": {
            split: score(params["trunk"], params["head"], load(task, split))
            for split in ("val", "test")
        },
        "seconds": seconds,
    }
    if not fisher:
        return found
    few = Images(data.x[:fisher], data.y[:fisher])
    begin = time.monotonic()
    exact = jax.block_until_ready(_fisher(params, few))["trunk"]
    found["fisher_seconds"] = time.monotonic() - begin
    curvature = optim.export_stats(state)["trunk"]
    saved = {**params, "curvature": curvature, "fisher": exact, "gram": grams(params["trunk"], few)}
    save_arrays(path, saved)
    return found | compared(trunk, params["trunk"], curvature, exact)


@jax.jit
def _fisher(params: Tree, data: Images) -> Tree:
    # One image at a time: the gradients of kernels of many images at once are slow on a CPU.
    return optim.per_example_squares(example_loss, params, data, chunk=1)


def compared(base: Tree, trunk: Tree, curvature: Tree, exact: Tree) -> dict[str, float]:
    """How well the curvature of training agrees with the Fisher information, and their sizes."""
    delta = {
        p: np.asarray(d, np.float64)
        for p, d in flatten_paths(merging.task_vector(trunk, base)).items()
    }
    ours, truth = (dense(stats, trunk) for stats in (curvature, exact))
    return {
        "saliency": rank_correlation(
            joined({p: delta[p] ** 2 * ours[p] for p in ours}),
            joined({p: delta[p] ** 2 * truth[p] for p in truth}),
        ),
        "curvature": rank_correlation(joined(ours), joined(truth)),
        "curvature_mean": float(joined(ours).mean()),
        "fisher_mean": float(joined(truth).mean()),
        "distance": float(np.linalg.norm(joined(delta))),
    }


def grams(trunk: Tree, data: Images) -> Tree:
    """``X^T X / rows`` of the inputs of every convolution, seen as a linear layer on patches."""

    @jax.jit
    def collect(x: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}

        def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            if isinstance(layer, nn.Conv):
                inputs = patches(args[0], layer.kernel_size, layer.strides or 1)
                found["/".join((*layer.path, "kernel"))] = inputs.T @ inputs / len(inputs)
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            maps(trunk, x)
        return found

    parts = [collect(data.x[i : i + CHUNK]) for i in range(0, len(data.x), CHUNK)]
    return unflatten_paths({p: sum(part[p] for part in parts) / len(parts) for p in parts[0]})


def patches(x: jax.Array, size: tuple[int, int], strides: int | tuple[int, int]) -> jax.Array:
    """What a convolution multiplies its kernel with: rows (kernel height, width, channels)."""
    strides = (strides,) * len(size) if isinstance(strides, int) else tuple(strides)
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated_patches(
        x, size, strides, "SAME", dimension_numbers=numbers
    )
    channels = x.shape[-1]
    apart = found.reshape(-1, channels, size[0] * size[1])  # JAX has the channel first
    return apart.transpose(0, 2, 1).reshape(len(apart), -1)


# --- rules --------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the table of rules.

    Attributes:
      rule: the merge rule.
      source: which statistic it is given: ``"curvature"`` of training, ``"fisher"`` exact,
        ``"margins"`` of it, ``"gram"``, or None; ``normalised`` ones divide by their mean.
      grid: options among which the validation split chooses; one of them is not tuned.
    """

    rule: str
    source: str | None = None
    grid: tuple[dict[str, Any], ...] = ({},)

    @property
    def tuned(self) -> bool:
        """Whether anything was chosen."""
        return len(self.grid) > 1

    @property
    def needs_task(self) -> bool:
        """Whether the merged model has to be told the task."""
        return any(rule.conditional for rule in merging.rules() if rule.name == self.rule)


def grid(**options: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """All combinations."""
    found: list[dict[str, Any]] = [{}]
    for name, values in options.items():
        found = [{**one, name: value} for one in found for value in values]
    return tuple(found)


SUMS = (0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
MEANS = (0.5, 1.0, 1.5, 2.0)
DENSITIES = (0.2, 0.5, 0.8)
ROWS: dict[str, Row] = {
    "average": Row("average"),
    "task_arithmetic": Row("task_arithmetic", grid=grid(scale=SUMS)),
    "ties, default": Row("ties"),
    "ties": Row("ties", grid=grid(density=(*DENSITIES, 1.0), scale=MEANS)),
    "dare": Row("dare", grid=grid(density=(0.1, 0.5, 0.9), scale=(0.05, 0.1, 0.2))),
    "dare_ties": Row("dare_ties", grid=grid(density=(0.1, 0.5, 0.9), scale=(0.5, 1.0, 2.0))),
    "breadcrumbs": Row("breadcrumbs", grid=grid(scale=SUMS)),
    "magnitude_weighted": Row("magnitude_weighted"),
    "consensus": Row("consensus", grid=grid(scale=SUMS)),
    "ota": Row("ota", "curvature", grid(density=(*DENSITIES, 1.0))),
    "umtam, default": Row("umtam", "curvature"),
    "umtam": Row("umtam", "curvature", grid(density=(*DENSITIES, 1.0), scale=MEANS)),
    "curvature_average": Row("curvature_average", "curvature"),
    "curvature_average, normalised": Row("curvature_average", "curvature normalised"),
    "curvature_average, tuned": Row(
        "curvature_average", "curvature", grid(power=(0.25, 0.5, 1.0, 2.0), scale=MEANS)
    ),
    "curvature_average of Fisher margins": Row("curvature_average", "margins"),
    "fisher": Row("fisher", "fisher"),
    "fisher, normalised": Row("fisher", "fisher", ({"normalize": "global"},)),
    "regmean": Row("regmean", "gram", grid(ratio=(0.5, 0.9, 1.0))),
    "adamerging by task": Row(
        "adamerging", grid=grid(granularity=("task",), init=(0.03, 0.1, 0.3))
    ),
    "adamerging by leaf": Row(
        "adamerging", grid=grid(granularity=("leaf",), init=(0.03, 0.1, 0.3))
    ),
    "emr": Row("emr"),
    "tall": Row("tall", grid=grid(lam=(0.2, 0.4, 0.6, 0.8, 1.0))),
}
"""Every registered rule; those of a grid are chosen by the mean relative accuracy on ``val``."""


class Experts(NamedTuple):
    """What the rules are given.

    Attributes:
      base: the trunk of all.
      trunks: by task.
      heads: by task.
      stats: by source and task.
    """

    base: Tree
    trunks: dict[str, Tree]
    heads: dict[str, Tree]
    stats: dict[str, dict[str, Tree]]


def read_experts(base: Path, files: Mapping[str, Path]) -> Experts:
    """Opens the experts of a seed."""
    trees = {task: load_arrays(path) for task, path in files.items()}
    stats = {
        source: {task: tree[source] for task, tree in trees.items()}
        for source in ("curvature", "fisher", "gram")
    }
    stats["margins"] = {
        task: margins(jax.tree.map(jnp.asarray, tree["fisher"])) for task, tree in trees.items()
    }
    stats["curvature normalised"] = {
        task: merging.normalize_curvature(tree["curvature"], "global")
        for task, tree in trees.items()
    }
    trunks, heads = ({t: tree[key] for t, tree in trees.items()} for key in ("trunk", "head"))
    return Experts(load_arrays(base), trunks, heads, stats)


def merged(row: Row, experts: Experts, options: Mapping[str, Any], steps: int) -> Any:
    """The merged trunk, or a conditional one."""
    if row.rule == "adamerging":
        options = {**options, **entropy_options(experts, steps)}
    stats = None if row.source is None else experts.stats[row.source]
    return merging.merge(row.rule, experts.base, experts.trunks, stats=stats, **options)


def entropy_options(experts: Experts, steps: int) -> dict[str, Any]:
    """What AdaMerging learns from: validation images without their labels."""
    rng = np.random.default_rng(0)
    images = {task: load(task, "val").x for task in experts.heads}
    batches = [
        {task: x[rng.integers(len(x), size=16)] for task, x in images.items()} for _ in range(16)
    ]

    def predict(trunk: Tree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        x = pooled(trunk, jnp.concatenate(list(batch.values())))
        parts = jnp.split(x, len(batch))
        return {t: linear(experts.heads[t], part) for t, part in zip(batch, parts, strict=True)}

    return {
        "predict": predict,
        "batches": batches,
        "steps": steps,
        "learning_rate": ADAMERGING_RATE,
    }


def accuracies(
    model: Any, experts: Experts, split: str, limit: int | None = None
) -> dict[str, float]:
    """Accuracy of every task under its own head."""

    def one(task: str, head: Tree) -> float:
        trunk = model.select(task) if isinstance(model, merging.TaskConditional) else model
        return score(trunk, head, Images(*(array[:limit] for array in load(task, split))))

    return {task: one(task, head) for task, head in experts.heads.items()}


def relative(found: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Mean over tasks of the accuracy as a part of the expert's own."""
    return float(np.mean([found[task] / individual[task] for task in found]))


def merge_all(
    base: Path,
    files: Mapping[str, Path],
    individual: Mapping[str, Mapping[str, float]],
    val: int,
    adamerging_steps: int,
) -> dict[str, Any]:
    """Every row: options chosen on ``val``, then the test accuracy of the chosen."""
    experts = read_experts(base, files)
    own = {task: scores["val"] for task, scores in individual.items()}
    rows = {}
    for name, row in ROWS.items():
        begin = time.monotonic()
        models = [merged(row, experts, options, adamerging_steps) for options in row.grid]
        scores = [relative(accuracies(m, experts, "val", val), own) for m in models if row.tuned]
        best = int(np.argmax(scores)) if scores else 0
        rows[name] = {
            "options": row.grid[best],
            "val": scores,
            "test": accuracies(models[best], experts, "test"),
            "seconds": time.monotonic() - begin,
        }
        print(name, rows[name], flush=True)
    return rows
