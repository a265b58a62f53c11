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
# # Bits per task
#
# Fine-tuning moves a network a little. How many bits does it take to say where to? A *task switch*
# says it with three things: a **mask** of the weights that change, a **sign** for each of these,
# and one number a layer, the **knob**, for how far. That is T-Switch (arXiv 2412.00054). Here we
#
# 1. **train** a base and four experts on scikit-learn's handwritten digits;
# 2. **make a switch** by hand, in four lines, and with one call;
# 3. turn **one dial**, $\alpha$, the part of the weights that is dropped, and see the *pulse*;
# 4. count the bits three times: as **claimed**, as the **entropy bound** allows, and **on disk**;
# 5. let a few examples **find the task** by themselves.
#
# Everything runs on a CPU in under a minute.

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
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown
from sklearn.datasets import load_digits

from sinewich_jax import merging, switches
from sinewich_jax.core import ternary
from sinewich_jax.core.trees import flatten_paths, map_paths
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

# %% [markdown]
# ## 1. A base and four experts
#
# Four tasks: the digits as they are, turned by a quarter, mirrored, and with light and dark
# exchanged. The base has seen a few images of each; an expert is the base trained on
# one task alone.

# %%
pixels, labels = load_digits(return_X_y=True)
mixed = np.random.default_rng(0).permutation(len(labels))
pixels, labels = np.float32(pixels[mixed] / 16), labels[mixed]
TASKS = {
    "upright": pixels,
    "turned": np.rot90(pixels.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64),
    "mirrored": pixels.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64),
    "inverted": 1 - pixels,
}
SEEN = 1200  # the other 597 images are for testing

fig, axes = plt.subplots(4, 1, figsize=(8, 2.8))
for axis, (task, images) in zip(axes, TASKS.items(), strict=True):
    axis.imshow(images[:24].reshape(24, 8, 8).transpose(1, 0, 2).reshape(8, -1), cmap="gray")
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(task, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# The network is a dictionary of arrays; all of it is switched, its head too.

# %%
WIDTHS = (64, 384, 384, 10)


def start(seed):
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": {
            "kernel": np.float32(rng.standard_normal((n, m)) * np.sqrt(2 / n)),
            "bias": np.zeros(m, np.float32),
        }
        for i, (n, m) in enumerate(itertools.pairwise(WIDTHS))
    }


def features(params, x):
    for name in ("layer0", "layer1"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x


def logits(params, x):
    return features(params, x) @ params["layer2"]["kernel"] + params["layer2"]["bias"]


@functools.partial(jax.jit, static_argnames=("rate", "steps"))
def train(params, x, y, rate, steps):
    tx = optax.adam(rate)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def step(carry, rows):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, x[rows], y[rows]), state)
        return (optax.apply_updates(params, updates), state), None

    order = jax.random.randint(jax.random.key(0), (steps, 64), 0, len(y))
    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]


def trained(*given, **more):
    return jax.tree.map(np.asarray, train(*given, **more))


@jax.jit
def correct(params, x, y):
    return (logits(params, x).argmax(-1) == y).mean()


def accuracy(params, task):
    return float(correct(params, TASKS[task][SEEN:], labels[SEEN:]))


few = np.concatenate([images[:100] for images in TASKS.values()])
base = trained(start(0), few, np.tile(labels[:100], len(TASKS)), rate=1e-3, steps=150)
experts = {
    task: trained(base, images[:SEEN], labels[:SEEN], rate=3e-4, steps=400)
    for task, images in TASKS.items()
}
parameters = sum(leaf.size for leaf in jax.tree.leaves(base))
print(f"{parameters:,} parameters")
for task in TASKS:
    print(f"{task:9} base {accuracy(base, task):.3f}, expert {accuracy(experts[task], task):.3f}")

# %% [markdown]
# ## 2. A switch
#
# The *task vector* is what training changed. Of its positive entries, and of its negative ones, a
# switch keeps the largest; of these only the sign, times one number that restores their norm. By
# hand, for one layer:

# %%
delta = {task: merging.task_vector(tree, base) for task, tree in experts.items()}
layer = delta["turned"]["layer1"]["kernel"]


def by_hand(layer, alpha):
    kept = np.zeros(layer.shape, bool)
    for side in (layer > 0, layer < 0):
        threshold = np.sort(np.abs(layer[side]))[-int(side.sum() * (1 - alpha))]
        kept |= side & (np.abs(layer) >= threshold)
    return np.sqrt(np.mean(layer[kept] ** 2)) * kept * np.sign(layer)


ALPHA = 0.6
switch = switches.make_switch(delta["turned"], alpha=ALPHA)
ours = switches.unpack(switch)["layer1"]["kernel"]
print("by hand and by the library:", np.allclose(by_hand(layer, ALPHA), ours))
leaf = switch.leaves["layer1/kernel"]
print(f"{leaf.shape} float32: {layer.nbytes:,} bytes; ", end="")
print(f"mask {leaf.mask.nbytes:,}, signs {leaf.sign.nbytes:,}, knob {leaf.knob:.5f}")
on = switches.apply_switch(base, switch)
off = switches.remove_switch(on, switch)
print(f"switched on: {accuracy(on, 'turned'):.3f}, off again: {accuracy(off, 'turned'):.3f}")

# %% [markdown]
# The histogram says why that can work. Most entries have hardly moved; the others lie around the
# knob. How near a switch can come to its task vector depends on the shape alone: the best cosine
# is 0.900 for a normal distribution (at $\alpha$ = 0.459) and 0.858 for a Laplace distribution (at
# $1 - 1/e$ = 0.632).

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 2.9))
edges = np.linspace(-4, 4, 121) * np.std(layer)
axes[0].hist(layer.ravel(), edges, color="0.75", label="task vector")
axes[0].hist(layer[ours != 0], edges, color=COLOURS[0], alpha=0.6, label="kept")
for side in (-1, 1):
    axes[0].axvline(
        side * float(leaf.knob), color=COLOURS[1], lw=1, label="knob" if side > 0 else None
    )
axes[0].set(title="entries of layer1", xlabel="change", yticks=[])
axes[0].legend()
limit = 3 * np.std(layer)
for axis, (title, picture) in zip(
    axes[1:], {"task vector": layer, f"switch at alpha {ALPHA}": ours}.items(), strict=True
):
    axis.imshow(picture[:64, :96], cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title=f"{title}, a corner", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## 3. One dial
#
# $\alpha$ is the part that is dropped. The library can also set it by itself, layer by layer:
# `alpha="auto"` keeps the $k$ largest magnitudes for which $S_k^2 / k$ is largest, $S_k$ being
# their sum, and that is the ternary vector nearest to the task vector. Two controls stand beside
# the switch: the *same* entries with their float32 values, and *other* entries, as many, drawn at
# random.

# %%
DIAL = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def mean_accuracy(tree_of):
    return float(np.mean([accuracy(tree_of(task), task) for task in TASKS]))


def switched(task, alpha, **options):
    made = switches.make_switch(delta[task], alpha=alpha, **options)
    return switches.apply_switch(base, made)


def values_only(task, alpha):
    steps = flatten_paths(switches.unpack(switches.make_switch(delta[task], alpha=alpha)))
    flat = flatten_paths(delta[task])
    return map_paths(lambda path, w: w + np.where(steps[path] != 0, flat[path], 0), base)


def at_random(task, alpha):
    rng = np.random.default_rng(0)
    score = map_paths(lambda _, d: rng.random(d.shape, np.float32), delta[task])
    return switched(task, alpha, score=score)


WAYS = {
    "switch": switched,
    "switch, full norm": functools.partial(switched, knob="l2_full"),
    "float32 values": values_only,
    "random mask": at_random,
}
pulse = {
    name: [mean_accuracy(lambda task, a=a, way=way: way(task, a)) for a in DIAL]
    for name, way in WAYS.items()
}
alone = mean_accuracy(experts.get)
auto = mean_accuracy(lambda task: switched(task, "auto"))
totals = [switches.summarize(switches.make_switch(d, alpha="auto")).total for d in delta.values()]
dropped = 1 - np.mean([total.density for total in totals])

fig, axis = plt.subplots(figsize=(7, 3.6))
for name, values in pulse.items():
    axis.plot(DIAL, values, ".-", label=name)
axis.plot(dropped, auto, "*", color=COLOURS[0], markersize=13, label="switch, alpha=auto")
axis.axhline(alone, color="0.5", lw=1, ls="--", label="experts")
axis.axhline(mean_accuracy(lambda task: base), color="0.7", lw=1, ls=":", label="base")
axis.set(xlabel="alpha: the part of the entries that is dropped", ylabel="mean accuracy")
axis.set_title("The pulse: dropping more than half makes the signs better")
axis.legend(loc="lower left", ncols=2)
plt.show()
print(f"experts {alone:.3f}; switch at 0.6: {pulse['switch'][DIAL.index(0.6)]:.3f}; ", end="")
print(f"at auto: {auto:.3f}, with {dropped:.0%} dropped")

# %% [markdown]
# With nothing dropped, a weight that hardly moved is pushed as far as any other: the signs of small
# entries are noise, all as loud as the rest. Dropping them is what helps, up to a point; beyond it
# too little is left. The curve of the float32 values shows which part is which: they never suffer
# on the left. On the right the switch is *above* them, for its knob is a norm and so makes up for
# some of what was dropped; the knob `l2_full`, which keeps the whole norm, shows it better still.

# %% [markdown]
# ## 4. Claimed, bound, on disk
#
# Now count. A mask of density $p$ needs at least $H(p)$ bits an entry, $H$ being the binary
# entropy, and the signs $p$ more. What is often *claimed* is two bits (two planes, "16 times
# smaller"), or less than the bound, as the table of the publication does by our arithmetic. What
# counts is a file:


# %%
def on_disk(alpha):
    """Bits a parameter in a bank file with all tasks, and the bound."""
    with tempfile.TemporaryDirectory() as folder:
        bank = switches.SwitchBank.create(Path(folder) / "tasks.swb", base=base)
        for task in TASKS:
            bank.add(task, switches.make_switch(delta[task], alpha=alpha))
        report = bank.report()
        bank.close()
    count = len(TASKS) * parameters
    return 8 * report.nbytes / count, 8 * report.total.bound / count, report


rows = []
for alpha in (*DIAL, "auto"):
    disk, bound, _ = on_disk(alpha)
    reached = auto if alpha == "auto" else pulse["switch"][DIAL.index(alpha)]
    rows.append(
        [str(alpha), "2", f"{bound:.3f}", f"{disk:.3f}", f"{32 / disk:.0f}", f"{reached:.3f}"]
    )
head = ["alpha", "two planes", "entropy bound", "on disk", "times smaller", "accuracy"]
Markdown(markdown_table(head, rows))

# %% [markdown]
# Bits a parameter and task; `on disk` has the index, checksums and padding in it. The file can be a
# little *below* the bound: that takes entries for independent, but pixels at the rim are always
# dark, so whole rows of the first layer never move, and a general compressor sees it.
#
# And the published table? It has 57.0 MB for eight tasks of CLIP ViT-B/32 (as others report it),
# whose image tower has 87.5 M parameters:

# %%
COUNT, PUBLISHED = 87_456_000, 57.0
claimed = PUBLISHED * 2**20 * 8 / 8 / COUNT
densities = np.linspace(0.001, 0.85, 2000)
bits = np.array([ternary.entropy_bits(10**6, round(p * 10**6)) / 10**6 for p in densities])
most = densities[np.argmax(bits >= claimed)]
print(f"57.0 MB (of 2^20 bytes) are {claimed:.2f} bits a parameter and task.")
print(f"At most {most:.0%} can be active then, so alpha would be {1 - most:.2f} or more;")
print("the published code has 0.6, for which the bound is ", end="")
print(f"{ternary.entropy_bits(10**6, 400_000) / 10**6 * COUNT / 2**20:.0f} MB.")

fig, axis = plt.subplots(figsize=(7, 3.2))
axis.plot(1 - densities, bits, color="0.4", label="entropy bound")
axis.axhline(2, color="0.7", lw=1, ls="--", label="two planes")
points = [(float(row[0]), float(row[3])) for row in rows if row[0] not in ("auto", "0.0")]
axis.plot(*zip(*points, strict=True), "o", label="on disk, here")
axis.plot(0.6, claimed, "x", color=COLOURS[1], markersize=9, label="published, if alpha was 0.6")
axis.set(xlabel="alpha", ylabel="bits a parameter", xlim=(0.15, 1), ylim=(0, 2.2))
axis.legend(loc="lower left")
plt.show()

# %% [markdown]
# Where do the bytes go? The bank says it for every task, and for every leaf:

# %%
_, _, report = on_disk(0.6)
columns = ("mask", "sign", "knob", "overhead", "disk", "bound")
rows = [
    [row.name, *(f"{getattr(row, column):,.0f}" for column in columns)]
    for row in (*report.tasks, *report.leaves["turned"])
]
Markdown(markdown_table(["bytes of", *columns], rows))

# %% [markdown]
# ## 5. Which task is this?
#
# A switch has to be told the task, or be chosen by examples: 100 images of every task are put
# through the *base*, and a new image asks its ten nearest neighbours among them (Auto-Switch). It
# matters how one counts. A server sees one image at a time; published evaluations average the
# votes over a batch that holds a single task, which is easier.

# %%
made = {task: switches.make_switch(delta[task], alpha=0.6) for task in TASKS}
look = jax.jit(features)
queries = switches.build_query_set(
    lambda x: look(base, x), {task: [images[:100]] for task, images in TASKS.items()}
)
router = switches.Router.fit(queries)
run = switches.Dispatcher(jax.jit(logits), base, made, names=router.names, cache=64)
rows = []
for mode in ("per_sample", "top1", "batch_mean", "batch_top1"):
    right, found, trees = [], [], []
    for number, images in enumerate(TASKS.values()):
        x, y = images[SEEN:], labels[SEEN:]
        routing = router(look(base, x), mode, abstain=False)
        result = run(x, routing.weights)
        right.append((result.outputs.argmax(-1) == y).mean())
        found.append((routing.weights.argmax(-1) == number).mean())
        trees.append(result.trees)
    rows.append([mode, f"{np.mean(right):.3f}", f"{np.mean(found):.1%}", f"{sum(trees)}"])
oracle = mean_accuracy(lambda task: switches.apply_switch(base, made[task]))
rows.append(["told the task", f"{oracle:.3f}", "100.0%", f"{len(TASKS)}"])
Markdown(markdown_table(["route by", "accuracy", "task found", "models merged"], rows))

# %% [markdown]
# Upright and mirrored digits are taken for each other now and then (a 0 or an 8 is both); mixing
# their switches, as the votes say, then does better than choosing one. [The
# study](../docs/results/switches.md) has harder tasks, three seeds, eight real data sets, and what
# does not hold.
