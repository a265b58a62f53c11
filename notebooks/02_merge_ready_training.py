# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Merge-ready training
#
# Two experts were trained from one base. We want one model that does both, without training again.
# The plain average treats every weight alike, but to each expert some weights are precious and
# others are not. How precious is a *curvature*, and it is usually estimated by another pass over
# the training data, the "Fisher pass".
#
# The optimizer has seen all those gradients already. `sinewich_jax.optim.with_merge_stats` keeps
# their averaged squares beside any optax optimizer, as $m + n$ numbers for a matrix of $m \times
# n$, and merging reads them. Here we
#
# 1. look at **two bowls**, where the geometry is exact;
# 2. **train** two experts and look at what is kept;
# 3. **merge** them without a Fisher pass, and with one for comparison;
# 4. look at the **landscape** between them;
# 5. **write the tracker ourselves**, in fifteen lines of optax.
#
# Everything runs on a CPU in under two minutes; all images are drawn on the spot.

# %%
import platform
import subprocess
import sys
import tempfile
from importlib import metadata

SOURCE = "sinewich-jax"  # what pip installs on Colab: a name, a folder or a git address

if "google.colab" in sys.modules:
    # Colab's jax fits its accelerator, so pip may add packages but must keep this one.
    kept = {d.name: d.version for d in metadata.distributions() if d.name.startswith("jax")}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={version}\n" for name, version in kept.items())
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name, SOURCE]
        subprocess.run(pip, check=True)

import jax

import sinewich_jax as sj

print(f"Python {platform.python_version()}, jax {jax.__version__} on {jax.default_backend()},")
print(f"optax {metadata.version('optax')}, sinewich_jax {sj.__version__}")

# %%
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown

from sinewich_jax import merging, optim
from sinewich_jax.core import curvature as curvatures
from sinewich_jax.core.curvature import Diagonal, Factored
from sinewich_jax.report.tables import markdown_table

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
plt.rcParams.update(
    {
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "figure.constrained_layout.use": True,
        "figure.dpi": 80,
        "font.size": 9,
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }
)
STYLES = {  # the same point looks the same in every picture
    "base": dict(marker="o", color="0.5"),
    "digits": dict(marker="s", color=COLOURS[0]),
    "letters": dict(marker="s", color=COLOURS[1]),
    "average": dict(marker="X", color=COLOURS[3]),
    "curvature average": dict(marker="*", color=COLOURS[4], markersize=14),
}


def mark(axis, name, at, **more):
    style = {"markersize": 9, "markeredgecolor": "white", "linestyle": "none"} | STYLES[name] | more
    axis.plot(*at, label=name, zorder=3, **style)


# %% [markdown]
# ## 1. Two bowls
#
# Near its optimum $W_t$ an expert's loss is a bowl, $\tfrac12 \sum_i V_{t,i} (w_i - W_{t,i})^2$,
# with a curvature $V_t$ of its own. Where one bowl is steep and the other flat, a merge should
# listen to the steep one. The sum of the bowls has exactly one lowest point:
#
# $$w_i = \frac{\sum_t V_{t,i} W_{t,i}}{\sum_t V_{t,i}},$$
#
# and that is all that the rule `curvature_average` does. Two weights, and two experts that are
# called as those below:

# %%
bowls = {  # where it is lowest, how curved it is along both axes
    "digits": (np.array([2.0, 0.3]), np.array([0.2, 3.0])),
    "letters": (np.array([0.3, 2.0]), np.array([3.0, 0.2])),
}
experts = {name: {"w": where} for name, (where, _) in bowls.items()}
stats = {name: {"w": Diagonal(bend)} for name, (_, bend) in bowls.items()}
merged = {
    "average": merging.merge("average", {"w": np.zeros(2)}, experts),
    "curvature average": merging.merge(
        "curvature_average", {"w": np.zeros(2)}, experts, stats=stats
    ),
}


def bowl(name, first, second):
    where, bend = bowls[name]
    return (bend[0] * (first - where[0]) ** 2 + bend[1] * (second - where[1]) ** 2) / 2


first, second = np.meshgrid(np.linspace(-0.6, 3, 200), np.linspace(-0.6, 3, 200))
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
for axis, names in zip(axes, (["digits"], ["letters"], list(bowls)), strict=True):
    loss = sum(bowl(name, first, second) for name in names)
    axis.contourf(first, second, loss, levels=24, cmap="Greys", alpha=0.6)
    axis.contour(first, second, loss, levels=12, colors="0.4", linewidths=0.5)
    axis.set(title=f"Loss on {' and '.join(names)}", xlabel="weight 1", aspect="equal")
    mark(axis, "base", (0, 0))
    for name in bowls:
        mark(axis, name, experts[name]["w"])
    for name, tree in merged.items():
        mark(axis, name, tree["w"])
axes[0].set_ylabel("weight 2")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
plt.show()

for name, tree in merged.items():
    print(f"{name}: {sum(bowl(task, *tree['w']) for task in bowls):.2f}")

# %% [markdown]
# ## 2. Two experts
#
# Glyphs of seven strokes, as on a pocket calculator, drawn at random size, place and angle. The
# **base** learns to name the strokes of random glyphs, bright on dark or dark on bright. From it
# start two experts: one reads **digits**, bright on dark; one reads **letters**, dark on bright. A
# third, for contrast, reads letters that are bright like the digits, but *slanted*.

# %%
SIDE = 16
CORNERS = np.array([[-0.5, -1], [0.5, -1], [-0.5, 0], [0.5, 0], [-0.5, 1], [0.5, 1]])
STROKES = {
    "a": (0, 1),
    "b": (1, 3),
    "c": (3, 5),
    "d": (4, 5),
    "e": (2, 4),
    "f": (0, 2),
    "g": (2, 3),
}
DIGITS = ["abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg"]
LETTERS = dict(
    A="abcefg", b="cdefg", C="adef", d="bcdeg", E="adefg",
    F="aefg", H="bcefg", J="bcde", L="def", P="abefg",
)  # fmt: skip


def strokes_of(words):
    return np.array([[stroke in word for stroke in STROKES] for word in words])


def draw(lit, rng, slant=0.0, dark=False):
    """Images [N, SIDE * SIDE] of glyphs whose strokes (N, 7) are lit or not."""
    count = len(lit)
    angle, size = rng.normal(slant, 0.15, count), rng.uniform(4.2, 6.2, (count, 1, 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = size * np.moveaxis(turn, 2, 0) * rng.uniform(0.85, 1.15, (count, 1, 2))
    ends = np.einsum("nij,sej->nsei", turn, CORNERS[np.array(list(STROKES.values()))])
    ends += (SIDE - 1) / 2 + rng.normal(0, 1, (count, 1, 1, 2))
    start, way = ends[:, :, :1], np.diff(ends, axis=2)
    pixels = np.moveaxis(np.indices((SIDE, SIDE))[::-1].reshape(2, -1), 0, 1)
    along = ((pixels - start) * way).sum(-1) / (way**2).sum(-1)
    nearest = start + np.clip(along, 0, 1)[..., None] * way
    distance = np.linalg.norm(pixels - nearest, axis=-1)
    ink = (np.clip(1.4 - distance, 0, 1) * lit[..., None]).max(1)
    ink = np.where(np.broadcast_to(dark, count)[:, None], 1 - ink, ink)
    return (ink + rng.normal(0, 0.12, ink.shape)).astype(np.float32)


def make(task, count, seed):
    """Images and labels."""
    rng = np.random.default_rng(seed)
    if task == "strokes":
        lit = rng.random((count, len(STROKES))) < 0.6
        slant, dark = rng.choice([0, 0.5], count), rng.random(count) < 0.5
        return draw(lit, rng, slant, dark), lit.astype(np.float32)
    labels = rng.integers(0, 10, count)
    lit = strokes_of(DIGITS if task == "digits" else LETTERS.values())[labels]
    style = {"letters": {"dark": True}, "slanted letters": {"slant": 0.5}}.get(task, {})
    return draw(lit, rng, **style), labels


TASKS = ("digits", "letters", "slanted letters")
seen = {task: make(task, 2000, seed=1) for task in ("strokes", *TASKS)}
unseen = {task: make(task, 1000, seed=2) for task in TASKS}

fig, axes = plt.subplots(4, 1, figsize=(8, 3.6))
for axis, (task, (images, _)) in zip(axes, seen.items(), strict=True):
    row = images[:12].reshape(12, SIDE, SIDE).transpose(1, 0, 2).reshape(SIDE, -1)
    axis.imshow(row, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(task, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# The model is a plain dictionary of arrays: a **trunk** of two layers that will be merged, and a
# head that stays with its task. The tracker is one word around the optimizer:
# `with_merge_stats(optax.adam(...))`.

# %%
WIDTH, CLASSES, STEPS = 128, 10, 300


def dense_layer(key, inputs, outputs):
    kernel = jax.random.normal(key, (inputs, outputs)) * np.sqrt(2 / inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def logits(params, images):
    x = images
    for name in ("layer1", "layer2"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, images, labels):
    scores = logits(params, images)
    if labels.ndim == scores.ndim:  # which strokes are lit
        return optax.sigmoid_binary_cross_entropy(scores, labels).mean()
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


@functools.partial(jax.jit, static_argnames=("tx", "steps"))
def train(tx, params, data, seed, steps):
    def step(carry, chosen):
        params, state = carry
        grads = jax.grad(loss)(params, *(array[chosen] for array in data))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    order = jax.random.randint(jax.random.key(seed), (steps, 32), 0, len(data[0]))
    return jax.lax.scan(step, (params, tx.init(params)), order)[0]


def trunk(tree):
    return {name: tree[name] for name in ("layer1", "layer2")}


keys = jax.random.split(jax.random.key(0), 3)
start = {
    "layer1": dense_layer(keys[0], SIDE * SIDE, WIDTH),
    "layer2": dense_layer(keys[1], WIDTH, WIDTH),
    "head": dense_layer(keys[2], WIDTH, len(STROKES)),
}
adam = optax.adam(1e-3)
base = trunk(train(adam, start, seen["strokes"], seed=0, steps=1500)[0])

tracked = optim.with_merge_stats(adam)


@functools.cache
def expert(task, seed=0, tx=tracked):
    """An expert and the state of its optimizer."""
    head = dense_layer(jax.random.key(100 * seed + TASKS.index(task)), WIDTH, CLASSES)
    return train(tx, {**base, "head": head}, seen[task], seed=seed, steps=STEPS)


def accuracy(shared, head, task):
    images, labels = unseen[task]
    return float((logits({**shared, "head": head}, images).argmax(-1) == labels).mean())


for task in TASKS:
    params, _ = expert(task)
    print(
        f"expert for {task}: {accuracy(trunk(params), params['head'], task):.1%} of unseen images"
    )


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e3


params, state = expert("digits")
print(f"\nparameters {size(params):.0f} kB, Adam {size(state.inner):.0f} kB, ", end="")
print(f"curvature {size(state.curv):.1f} kB")

# %% [markdown]
# ### What is kept
#
# For a kernel $W$ of $m \times n$ the tracker averages $g_{ij}^2$ over rows and columns, and the
# product of both stands for the whole: $\tilde V = \mathrm{row} \otimes \mathrm{col}\,/\,
# \mathrm{mean}(\mathrm{row})$. What does that lose? We train the digits again with a tracker that
# factors nothing. The weights must come out the same, bit for bit: a tracker only looks.

# %%
dense_tracker = optim.with_merge_stats(adam, min_dim_to_factor=10**9)
params, state = expert("digits")
again, dense_state = expert("digits", tx=dense_tracker)
same = jax.tree.map(lambda a, b: bool((a == b).all()), params, again)
print("the same weights, bit for bit:", all(jax.tree.leaves(same)))

kept = {task: optim.export_stats(expert(task)[1]) for task in TASKS}
average = optim.export_stats(dense_state)["layer2"]["kernel"].diag
margins = kept["digits"]["layer2"]["kernel"]
product = curvatures.dense(margins, average.shape)


def ranks(array):
    return np.argsort(np.argsort(np.ravel(array)))


order = np.argsort(average.mean(1)), np.argsort(average.mean(0))
pictures = {
    f"dense average: {average.size:,} numbers": average,
    f"row x col / mean: {margins.row.size + margins.col.size} numbers": product,
}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6))
for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
    shades = np.log10(np.maximum(picture[np.ix_(*order)], 1e-12))
    image = axis.imshow(shades, cmap="viridis", vmin=-7, vmax=-3)
    axis.set(title=title, xticks=[], yticks=[], xlabel="output unit, sorted")
axes[0].set_ylabel("input unit, sorted")
fig.colorbar(image, ax=axes[:2], label="$\\log_{10}$ curvature", shrink=0.8)
alive = np.ravel(average) > 0
axes[2].loglog(np.ravel(average)[alive], np.ravel(product)[alive], ",", alpha=0.5)
axes[2].loglog([1e-10, 1e-3], [1e-10, 1e-3], color="0.3", lw=0.8)
likeness = np.corrcoef(ranks(average)[alive], ranks(product)[alive])[0, 1]
axes[2].set(title=f"entry by entry (rank correlation {likeness:.2f})", xlabel="dense average")
axes[2].set(ylabel="row x col / mean", xlim=(1e-10, 1e-3), ylim=(1e-10, 1e-3))
fig.suptitle("Curvature of the second layer, of the expert for digits")
plt.show()

# %% [markdown]
# In the first layer a row is a pixel, so its curvature is a picture of where the expert looks:

# %%
fig, axes = plt.subplots(1, len(TASKS), figsize=(9, 2.8))
for axis, task in zip(axes, TASKS, strict=True):
    row = kept[task]["layer1"]["kernel"].row.reshape(SIDE, SIDE)
    image = axis.imshow(row / row.mean(), cmap="viridis", vmin=0, vmax=3)
    axis.set(title=task, xticks=[], yticks=[])
fig.colorbar(image, ax=axes, label="curvature of a pixel / mean")
plt.show()

# %% [markdown]
# ## 3. Merge
#
# A merge is one line. Where the table shows a coefficient, it was chosen among several on the very
# images that are scored, in its favour; all others are the defaults. `fisher` is for comparison: it
# pays for a pass over the training data at the end, one gradient an example.

# %%
RULES = (
    ("average", {}),
    ("task_arithmetic", {"scale": 0.8}),
    ("ties", {"density": 0.5}),
    ("curvature_average", {}),
    ("curvature_average", {"scale": 1.2}),
    ("fisher", {}),
    ("fisher", {"scale": 1.2}),
)
PAIRS = (("digits", "letters"), ("digits", "slanted letters"))
SEEDS = range(3)


@jax.jit
def fisher_pass(params, data):
    def one(params, example):
        return loss(params, *(array[None] for array in example))

    return optim.per_example_squares(one, params, data, chunk=100)


def merged_trunk(rule, options, tasks, seed=0):
    experts = {task: expert(task, seed) for task in tasks}
    stats = None
    if rule == "curvature_average":
        stats = {task: trunk(optim.export_stats(state)) for task, (_, state) in experts.items()}
    elif rule == "fisher":
        stats = {task: trunk(fisher_pass(experts[task][0], seen[task])) for task in tasks}
    trunks = {task: trunk(params) for task, (params, _) in experts.items()}
    return merging.merge(rule, base, trunks, stats=stats, **options)


def scores(tasks, trunk_of):
    """Accuracy in per cent, mean of the tasks, each through its own head: mean ± sd over seeds."""
    found = []
    for seed in SEEDS:
        heads = [expert(task, seed)[0]["head"] for task in tasks]
        shared = [trunk_of(task, seed) for task in tasks]
        found.append(100 * np.mean(list(map(accuracy, shared, heads, tasks))))
    return f"{np.mean(found):.1f} ± {np.std(found, ddof=1):.1f}"


rows = [["each its own"] + [scores(t, lambda *one: trunk(expert(*one)[0])) for t in PAIRS]]
for rule, options in RULES:
    row = [", ".join([rule, *(f"{name} {value}" for name, value in options.items())])]
    for tasks in PAIRS:
        merge = functools.cache(functools.partial(merged_trunk, rule, options, tasks))
        row.append(scores(tasks, lambda _, seed, merge=merge: merge(seed)))
    rows.append(row)
Markdown(markdown_table(["trunk", *map(" and ".join, PAIRS)], rows))

# %% [markdown]
# Per cent of 1000 unseen images, the mean of both tasks, over three seeds (new heads, new batches).
#
# * Digits and dark letters look at different pixels, as the picture above says. There curvature
#   knows whose weight is whose: its average leads as it is, and by more with a scale.
# * Digits and slanted letters need the same pixels. There it is ahead of the plain average and
#   level with task arithmetic at its best scale.
# * The Fisher pass, made at the end of training, knew no better than the optimizer along the way.
#
# The spread over seeds is large: a difference of a few points is none.
#
# ## 4. The landscape between two experts
#
# Through the base and two experts goes a plane. Its axes are the shares of both task vectors:
# (0, 0) is the base, (1, 0) and (0, 1) are the experts, their average is (½, ½). The curvature
# average weighs each entry in its own way and so leaves the plane; the picture has the point of the
# plane nearest to it. Contours are in geometric steps.

# %%
PAIR = PAIRS[0]
pair = {task: expert(task)[0] for task in PAIR}
trunks = {task: trunk(params) for task, params in pair.items()}
deltas = [merging.task_vector(trunks[task], base) for task in PAIR]
merged = {
    "average": merged_trunk("average", {}, PAIR),
    "curvature average": merged_trunk("curvature_average", {}, PAIR),
}


@jax.jit
def losses(shared):
    """The loss on the unseen images of both tasks, each through its own head: (2,)."""
    found = [loss({**shared, "head": pair[task]["head"]}, *unseen[task]) for task in PAIR]
    return jnp.stack(found)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


directions = np.stack([flat(delta) for delta in deltas], axis=1)
lengths = np.linalg.norm(directions, axis=0)
below = {}
print(f"task vectors: cosine {directions.prod(1).sum() / lengths.prod():.2f}")
for name, tree in merged.items():
    change = flat(tree) - flat(base)
    below[name] = np.linalg.lstsq(directions, change)[0]
    above = np.linalg.norm(change - directions @ below[name]) / lengths.mean()
    print(
        f"{name}: loss {losses(tree).sum():.2f}, {above:.2f} task vectors above the plane, ", end=""
    )
    print(f"seen at {np.round(below[name], 2)}")

# %%
shares = jnp.linspace(-0.3, 1.3, 33)


@jax.jit
def on_the_plane(shares):
    def at(first, second):
        return losses(jax.tree.map(lambda w, a, b: w + first * a + second * b, base, *deltas))

    return jax.lax.map(lambda second: jax.lax.map(lambda first: at(first, second), shares), shares)


heights = np.moveaxis(np.asarray(on_the_plane(shares)), -1, 0)
titles = [*(f"Loss on {task}" for task in PAIR), "Loss on both"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.7), sharey=True)
for axis, height, title in zip(axes, [*heights, heights.sum(0)], titles, strict=True):
    levels = np.geomspace(height.min(), height.max(), 15)
    axis.contourf(shares, shares, height, levels=levels, cmap="Greys", alpha=0.6, norm="log")
    axis.contour(shares, shares, height, levels=levels, colors="0.4", linewidths=0.5)
    axis.set(title=title, xlabel=f"share of the vector of {PAIR[0]}", aspect="equal")
    for name, at in {"base": (0, 0), PAIR[0]: (1, 0), PAIR[1]: (0, 1), **below}.items():
        mark(axis, name, at)
axes[0].set_ylabel(f"share of the vector of {PAIR[1]}")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
plt.show()

# %% [markdown]
# From one expert to the other there is a straight way: the weighted average. With the same weights
# `curvature_average` goes another way, which bends.

# %%
curvature = {task: trunk(kept[task]) for task in PAIR}
ways = {
    "average": functools.partial(merging.merge, "average", base, trunks),
    "curvature average": functools.partial(
        merging.merge, "curvature_average", base, trunks, stats=curvature
    ),
}
steps = np.linspace(0, 1, 21)
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True)
for name, way in ways.items():
    found = np.array([losses(way(weights=(1 - float(t), float(t)))) for t in steps])
    for axis, values, title in zip(axes, [*found.T, found.sum(1)], titles, strict=True):
        axis.semilogy(steps, values, color=STYLES[name]["color"])
        mark(axis, name, (0.5, values[len(steps) // 2]))
        axis.set(title=title, xlabel=f"weight of {PAIR[1]}")
    axes[0].set_yticks([0.3, 0.5, 1, 2, 3], ["0.3", "0.5", "1", "2", "3"])
axes[0].minorticks_off()
axes[0].set_ylabel("loss")
axes[0].legend(title="way of the")
plt.show()

# %% [markdown]
# ## 5. Writing an optax transform
#
# An optax transform is two pure functions: `init(params)` makes a state, and `update(grads, state,
# params)` gives updates and the next state. The state is a tree of arrays; what does not change is
# closed over. A tracker passes the gradients on and remembers their squares:


# %%
class TrackState(NamedTuple):
    curv: Any  # the parameters' tree, the margins of a matrix at each leaf
    weight: jax.Array  # the sum of the averages' weights, to remove the bias of the start


def track(decay=0.999):
    def init(params):
        zero = jax.tree.map(lambda w: Factored(*map(jnp.zeros, w.shape)), params)
        return TrackState(zero, jnp.zeros(()))

    def update(grads, state, params=None):
        new = jax.tree.map(lambda g: Factored((g * g).mean(1), (g * g).mean(0)), grads)
        curv = jax.tree.map(lambda old, now: decay * old + (1 - decay) * now, state.curv, new)
        return grads, TrackState(curv, decay * state.weight + (1 - decay))

    return optax.GradientTransformation(init, update)


# %% [markdown]
# It takes matrices only, so `optax.masked` keeps the biases from it, and it stands in a chain
# *before* Adam, where gradients are still gradients. Its state has the fields `curv` and `weight`,
# and that is all that `export_stats` asks for: it finds them anywhere in an optimizer's state.


# %%
def matrices(params):
    return jax.tree.map(lambda w: w.ndim == 2, params)


ours = optax.chain(optax.masked(track(), matrices), adam)
our_params, our_state = expert("digits", tx=ours)
same = jax.tree.map(lambda a, b: bool((a == b).all()), our_params, pair["digits"])
print("the same weights, bit for bit:", all(jax.tree.leaves(same)))

ours_kept = optim.export_stats(our_state)
for layer in ("layer1", "layer2"):
    for margin in Factored._fields:
        one, other = (
            getattr(found[layer]["kernel"], margin) for found in (ours_kept, kept["digits"])
        )
        far = float((jnp.abs(one - other) / other.max()).max())
        print(f"{layer}/kernel {margin}: largest difference {far:.0e} of the largest entry")

# %% [markdown]
# What `with_merge_stats` adds to these lines is what one meets in practice:
#
# * it is a **wrapper**, not a link: what is inside may clip, it sees the gradients before;
# * leaves of **any shape and dtype**: which axes are rows (`rows=`), which leaves are left out
#   (`mask=`); small ones keep the dense average; statistics are float32 whatever the weights are;
# * a step with a gradient that is **not finite** leaves no trace;
# * `stats_every=10` records each tenth step; `sinewich bench optim` says what it costs;
# * `merge_sq=` takes squares of single examples where one can afford them.
#
# ## What to take along
#
# * Wrap the optimizer before you train: `optim.with_merge_stats(tx)`. The updates do not change.
# * `merging.merge("curvature_average", base, experts, stats=...)` then needs no data and has
#   nothing to tune. All other rules, and the command for files: `docs/merging.md`.
# * It is an average with better weights, not magic: where experts need one weight for two things,
#   no average serves both.
