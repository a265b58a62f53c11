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
# # Turning the frequency dial
#
# One frozen backbone serves many tasks. They share a single low-rank kernel
# $M = A\,W B^\top$, and each task owns one number, its frequency $\omega_t$. The task's kernel is
#
# $$M_t = \sin(\omega_t M), \qquad \text{element by element.}$$
#
# Here we turn $\omega$ by hand, three times:
#
# 1. on a **kernel** alone: what the sine does to its entries, its spectrum and its direction;
# 2. at the **start of training**: why one start switches and the other only scales;
# 3. on a small **trained network**: what happens to one task's prediction when it listens at
#    another task's frequency.
#
# Everything runs on a CPU in under two minutes; all images are rendered on the spot.

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
print(f"flax {metadata.version('flax')}, sinewich_jax {sj.__version__}")

# %%
import base64
import json

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

sine, clock = sj.core.sine, sj.core.clock

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


def show(axis, picture, **labels):
    axis.imshow(picture, cmap="RdBu_r", vmin=-1, vmax=1)  # RGB ignores the three
    axis.set(xticks=[], yticks=[], **labels)
    axis.spines[:].set_visible(False)


# %% [markdown]
# ## 1. The kernel and the sine
#
# $M$ is fused from its factors first, then bent. We take 48 channels, rank 2, $W$ left out
# (a $1\times1$ kernel does not need it) and entries of standard deviation 1. Channels have no
# order, so we may sort them such that the eye sees the structure; the sine does not care.

# %%
CHANNELS, RANK = 48, 2


def by_angle(factor):
    return factor[jnp.argsort(jnp.arctan2(factor[:, 1], factor[:, 0]))]


up, down = map(by_angle, sine.anchor_factors(jax.random.key(0), CHANNELS, CHANNELS, RANK, std=1.0))
kernel = sine.awb_kernel(up, None, down)  # M, (1, 1, in, out)
turn = jax.vmap(sine.modulate, in_axes=(None, 0))  # one kernel, many frequencies

print(f"M: shape {kernel.shape}, std {kernel.std():.2f}, rank {sine.numeric_rank(kernel[0, 0])}")

# %%
dial = jnp.array([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
kernels = turn(kernel, dial)[:, 0, 0]
ranks = sine.effective_rank(kernels)
entries = np.linspace(-3, 3, 601)

fig, axes = plt.subplots(2, len(dial), figsize=(11, 4.4), height_ratios=(3, 2), sharey="row")
for (above, below), omega, picture, rank in zip(axes.T, dial, kernels, ranks, strict=True):
    title = f"$\\omega$ = {omega:g}\neffective rank {rank:.1f}"
    show(above, picture.T / jnp.abs(picture).max(), title=title, xlabel="input channel")
    below.hist(kernel.ravel(), bins=60, range=(-3, 3), density=True, color="0.85")
    below.plot(entries, np.sin(omega * entries), lw=1.2)
    below.set(xlabel="entry $m$ of $M$", ylim=(-1.15, 1.15), xlim=(-3, 3))
axes[0, 0].set_ylabel("output channel")
axes[1, 0].set_ylabel("$\\sin(\\omega m)$")
fig.suptitle("The dial: $\\sin(\\omega M)$ as a picture, and the sine that its entries meet")
plt.show()

# %% [markdown]
# Left, the sine is a straight line over all entries (their histogram is grey): $\sin(\omega M)
# \approx \omega M$, the same picture at another loudness. Right, entries wrap around several
# times, and two numbers a channel have become a kernel without visible structure.
#
# What matters is the **modulation index** $\mu = \omega\,\mathrm{std}(M)$. Here
# $\mathrm{std}(M) = 1$, so $\mu = \omega$; in general only $\mu$ counts, because $(\omega, M)$ and
# $(a\,\omega, M/a)$ make the same kernel.
#
# Turn it yourself (a static page shows a still picture; run the notebook for the dial):

# %%
stops = 2.0 ** jnp.arange(-5, 3.25, 0.25)
turned = turn(kernel, stops)
likeness = sine.kernel_cosine(jnp.concatenate([kernel[None], turned]))[0, 1:]
table = np.stack([stops, sine.effective_rank(turned[:, 0, 0]), likeness], axis=1)
packed = base64.b64encode(np.asarray(kernel[0, 0].T * 4096).astype("<i2").tobytes()).decode()

page = """
<div id="sine-dial" style="width: 300px; font: 14px sans-serif">
  <canvas width="SIDE" height="SIDE" style="width: 300px; image-rendering: pixelated"></canvas>
  <input type="range" min="0" max="LAST" value="20" style="width: 100%"><output></output>
</div>
<script>
(() => {
  const [canvas, slider, text] = document.getElementById("sine-dial").children;
  const m = new Int16Array(Uint8Array.from(atob("PACKED"), c => c.charCodeAt(0)).buffer);
  const table = TABLE;
  const brush = canvas.getContext("2d"), image = brush.createImageData(SIDE, SIDE);
  function draw() {
    const [omega, rank, likeness] = table[slider.value];
    const kernel = Array.from(m, x => Math.sin(omega * x / 4096));
    const peak = Math.max(...kernel.map(Math.abs));
    kernel.forEach((value, i) => {
      const end = value > 0 ? [178, 24, 43] : [33, 102, 172], share = Math.abs(value) / peak;
      image.data.set([...end.map(c => 255 + share * (c - 255)), 255], 4 * i);
    });
    brush.putImageData(image, 0, 0);
    text.value = `ω = μ = ${omega.toFixed(2)}, effective rank ${rank.toFixed(1)}, `
               + `cosine to M ${likeness.toFixed(2)}`;
  }
  slider.oninput = draw;
  draw();
})();
</script>
"""
values = {"SIDE": CHANNELS, "LAST": len(stops) - 1, "PACKED": packed}
values["TABLE"] = json.dumps(table.astype(float).round(3).tolist())
for name, value in values.items():
    page = page.replace(name, str(value))
HTML(page)

# %% [markdown]
# ### Its spectrum
#
# A rank-$r$ matrix has $r$ singular values. Since $\sin x = x - x^3/6 + \dots$, each odd power
# adds directions of its own, first tiny ones, and from $\mu \approx 1$ on large ones.

# %%
mu = jnp.logspace(-2, 1.3, 40)
bent = turn(kernel, mu)[:, 0, 0]

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4))
shades = plt.colormaps["viridis"](np.linspace(0, 0.9, len(dial)))
for omega, picture, shade in zip(dial, kernels, shades, strict=True):
    values = np.linalg.svd(picture, compute_uv=False)
    left.semilogy(np.arange(1, CHANNELS + 1), values / values[0], color=shade, label=f"{omega:g}")
left.legend(title="$\\omega = \\mu$", loc="center left", bbox_to_anchor=(1, 0.5))
left.set(title="Singular values of $\\sin(\\omega M)$", xlabel="index $i$", ylim=(1e-6, 2))
left.set_ylabel("$s_i\\,/\\,s_1$")

right.semilogx(mu, sine.effective_rank(bent), label="effective rank $e^{-\\sum p \\log p}$")
right.semilogx(mu, sine.stable_rank(bent), label="stable rank $\\|M\\|_F^2\\,/\\,\\|M\\|_2^2$")
right.axhline(RANK, color="0.6", lw=0.8, ls="--", label="rank of $M$")
right.set(title="How many directions carry weight", ylabel="rank")
right.set_xlabel("modulation index $\\mu = \\omega\\,\\mathrm{std}(M)$")
right.legend()
plt.show()

# %% [markdown]
# ### Do two frequencies make two kernels?
#
# If the entries of $M$ are normal with standard deviation $\sigma$, the cosine between two tasks'
# kernels has a closed form (`sine.gaussian_cosine_law`):
#
# $$\cos(\omega_1, \omega_2) = \frac{e^{-\sigma^2(\omega_1-\omega_2)^2/2}
# - e^{-\sigma^2(\omega_1+\omega_2)^2/2}}
# {\sqrt{\left(1-e^{-2\sigma^2\omega_1^2}\right)\left(1-e^{-2\sigma^2\omega_2^2}\right)}}.$$
#
# Six tasks with the library's default frequencies, 0.6 to 1.4, and its default rank 12:

# %%
omegas = clock.spread_frequencies(6, scale=0.5)


def random_kernel(rank, std, seed=1):
    up, down = sine.anchor_factors(jax.random.key(seed), CHANNELS, CHANNELS, rank, std=std)
    return sine.awb_kernel(up, None, down)


measured = sine.kernel_cosine(turn(random_kernel(12, std=2.0), omegas))
law = sine.gaussian_cosine_law(2.0, omegas[:, None], omegas[None])

levels = np.geomspace(0.05, 8, 25)
above_diagonal = np.triu_indices(len(omegas), 1)


def mean_cosine(rank):
    return [sine.mean_pairwise_cosine(turn(random_kernel(rank, s), omegas)) for s in levels]


def mean_law(of, levels):
    return [of(s, omegas[:, None], omegas[None])[above_diagonal].mean() for s in levels]


def show_matrix(axis, matrix, title, labels=omegas):
    image = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    ticks = [f"{omega:.2f}" for omega in labels]
    axis.set_xticks(range(len(labels)), ticks)
    axis.set_yticks(range(len(labels)), ticks)
    axis.set(title=title, xlabel="$\\omega_1$", ylabel="$\\omega_2$")
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > 0.7 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=7)
    return image


fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=(1, 1, 1.2))
show_matrix(axes[0], measured, "Cosine of kernels, measured ($\\mu$ = 2)")
show_matrix(axes[1], law, "Cosine of kernels, closed form ($\\mu$ = 2)")
axes[2].semilogx(
    levels, mean_law(sine.gaussian_cosine_law, levels), color="0.3", label="closed form"
)
axes[2].semilogx(levels, mean_cosine(12), "o", ms=4, label="rank 12")
axes[2].semilogx(levels, mean_cosine(2), "s", ms=4, mfc="none", label="rank 2")
axes[2].set(title="Mean cosine over all pairs", xlabel="mean modulation index $\\mu$")
axes[2].set(ylabel="mean cosine", ylim=(0, 1.05))
axes[2].legend()
plt.show()

# %% [markdown]
# The law is exact for normal entries; a product of few factors has heavier tails, and its cosines
# lie a little above. The left end is the trap: for $\mu \ll 1$ every cosine is 1. The kernels are
# then collinear, and "frequency switching" is a volume knob, $M_t \approx \omega_t M$.

# %% [markdown]
# ## 2. Zero start and anchored start
#
# An adapter should begin as nothing: the untouched model must be the frozen backbone. There are
# two ways. Let training then move the kernel by a small $\Delta M$; to first order task $t$ sees
# it through a **mask**:
#
# | start | task kernel | $M$ at first | first change |
# |---|---|---|---|
# | zero | $\sin \omega M$ | $0$ | $\omega\,\Delta M$ |
# | anchored | $\sin \omega M - \sin \omega M_0$ | $M_0$ | $\omega\cos(\omega M_0) \odot\Delta M$ |
#
# The zero start is the published one. Its mask is $\cos(\omega_t \cdot 0) = 1$: all tasks move
# along the same $\Delta M$, scaled by $\omega_t$. That is a scalar gain. The anchored start draws
# a random $M_0$, keeps a frozen copy and subtracts it; each task then has its own mask
# $\cos(\omega_t M_0)$, which hides some entries, passes others and turns the sign of the rest.

# %%
three = clock.spread_frequencies(3, scale=0.5)
starts = {"zero start": jnp.zeros_like(kernel), "anchored start": 2.0 * kernel}
change = random_kernel(12, std=0.02)  # the same small change of M for everyone
move = jax.vmap(sine.anchored, in_axes=(None, None, 0))

fig, axes = plt.subplots(2, 4, figsize=(10.5, 5.2), width_ratios=(1, 1, 1, 1.1))
for row, (name, first) in zip(axes, starts.items(), strict=True):
    for axis, omega in zip(row, three, strict=False):
        show(axis, jnp.cos(omega * first[0, 0].T), title=f"{name}, $\\omega$ = {omega:.1f}")
        axis.set(xlabel="input channel", ylabel="output channel")
    updates = move(first + change, first, three)
    show_matrix(row[3], sine.kernel_cosine(updates), "Cosine of the tasks' updates", three)
fig.colorbar(axes[1, 2].images[0], ax=axes[:, 2], label="mask $\\cos(\\omega_t M_0)$", shrink=0.6)
fig.suptitle("Through which mask does a task see the same change of the kernel?")
plt.show()

# %% [markdown]
# The masks have a law, too (`sine.gaussian_update_cosine_law`). Its right tail is where tasks
# become independent; the library starts at $\mu = 2$. The zero start must first *grow* its kernel
# to get away from 1, and nothing in the loss asks it to.


# %%
def mean_update_cosine(std):
    first = random_kernel(12, std)
    return sine.mean_pairwise_cosine(move(first + random_kernel(12, 1e-3, seed=2), first, omegas))


fig, axis = plt.subplots(figsize=(6, 3.4))
even = np.linspace(0.1, 6, 21)
expected = mean_law(sine.gaussian_update_cosine_law, even)
axis.plot(even, expected, color="0.3", label="closed form")
axis.plot(even, [mean_update_cosine(s) for s in even], "o", ms=4, label="measured, rank 12")
axis.plot(0, 1, "D", ms=8, label="zero start", clip_on=False, zorder=3)
axis.plot(2, mean_update_cosine(2.0), "D", ms=8, label="anchored start, library default")
axis.set(
    title="How parallel are the first updates of six tasks?",
    xlabel="modulation index $\\mu$ at the start",
)
axis.set(ylabel="mean pairwise cosine", xlim=(0, 6), ylim=(0, 1.05))
axis.legend()
plt.show()

# %% [markdown]
# ## 3. A real, small model
#
# `MultiTaskModel`: a frozen Swin of 0.9 M parameters, pretrained on rendered images without labels,
# whose last block in each stage splits into one stream a task. Three tasks, anchored start, 80
# steps on 192 rendered scenes. Train step, optimizer and data stream are those of `train.py`.

# %%
from sinewich_jax.config import from_dict
from sinewich_jax.train import build, setup, state, step as steps

TASKS = ("semseg", "normals", "depth")
SIZE, STEPS = 64, 80
scenes = sj.data.scenes

rendered = scenes.render_many(range(192), SIZE, SIZE)
source = sj.data.from_arrays(
    {"image": rendered["image"], **{task: rendered["labels"][task] for task in TASKS}},
    class_names={"semseg": scenes.SEMSEG_CLASSES},
)
config = from_dict(
    {
        "tasks": TASKS,
        "channels": source.channels,
        "decoder_channels": (16, 16, 16, 16),
        "decoder_hidden": 64,
        "learning_rate": 3e-3,
        "task_lr_mult": 4.0,
        "weight_decay": 0.01,
        "warmup_steps": 5,
        "steps": STEPS,
        "batch_size": 8,
    }
)
mesh = sj.parallel.make_mesh(devices=jax.devices()[:1])
run = setup.set_up(config, mesh, build.experiment(config, source))
model, tasks = run.experiment.model, run.experiment.tasks
print(f"{run.counts['trainable']:,} of {run.counts['total']:,} parameters are trained")

# %% [markdown]
# `model.apply(variables, image, omega)` is the dial. `omega` is `(T,)` for the whole model, or one
# such array a layer; without it the model reads its own clock. First we turn it *before* training.
# The anchored start promises that nothing moves, and it means bit for bit:

# %%
first = scenes.SPLIT_OFFSETS["val"]
unseen = scenes.render_many(range(first, first + 16), SIZE, SIZE)
images = run.experiment.normalise(jnp.asarray(unseen["image"]))
predict = jax.jit(model.apply)
score = jax.jit(lambda logits, batch: steps.task_losses(tasks, logits, batch))


def everywhere(backbone, decoder):
    """Frequencies (T,) for all layers of the backbone, and for the decoder."""
    return {**dict.fromkeys(model.backbone.task_layers, backbone), "decoder": decoder}


def variables_of(now):
    return state.join_variables(now.params, now.model_state, run.placed.constants)


untouched = variables_of(run.placed.state)
slow = predict(untouched, images, everywhere(jnp.full(3, 0.3), three))
fast = predict(untouched, images, everywhere(jnp.full(3, 2.0), three))
for task in TASKS:
    print(f"{task}: largest difference {jnp.abs(slow[task] - fast[task]).max()}")

# %% [markdown]
# Now the training.

# %%
stream = sj.data.batches(source, batch_size=config.batch_size, seed=0)
train_step = steps.make_train_step(run.experiment, run.tx, run.placed, mesh, seed=0)
current = run.placed.state
for number in range(STEPS):
    batch = sj.parallel.put_batch(stream.batch_at(number), mesh)
    current, metrics = train_step(current, run.placed.constants, batch)
    if number in (0, 19, 39, STEPS - 1):
        losses = ", ".join(f"{task} {float(metrics[f'loss/{task}']):.2f}" for task in TASKS)
        print(f"step {number + 1:2d}: loss {float(metrics['loss']):5.2f} ({losses})")

trained = variables_of(current)
report = jax.jit(lambda v: model.apply(v, method="diagnostics"))(trained)
own = report["omega"]["decoder"]
print("\nlearned frequencies:", ", ".join(f"{t} {w:.2f}" for t, w in zip(TASKS, own, strict=True)))
print(f"modulation index at stage0/fc1: {np.round(report['modulation_index']['stage0/fc1'], 2)}")
print(f"mean cosine of the tasks' updates: {np.mean(list(report['update_cosine'].values())):.2f}")

base = trained["params"]["decoder"]["base"][None, None]
print(f"\nmodulation index in the decoder: {np.round(sine.modulation_index(base, own), 2)}")
print(f"mean cosine of the decoder's kernels: {sine.mean_pairwise_cosine(turn(base, own)):.3f}")

# %% [markdown]
# ### Every task listens on its own frequency
#
# Now one dial for all: we give *every* task the same $\omega$, sweep it, and plot each task's loss
# on 16 unseen scenes over its loss at its own frequency. The model switches in two places, its
# backbone and its decoder, so we turn both, then each alone.

# %%
sweep = np.linspace(0.2, 2.0, 10)
modes = {
    "Backbone and decoder turned": lambda omega: everywhere(omega, omega),
    "Backbone turned": lambda omega: everywhere(omega, own),
    "Decoder turned": lambda omega: everywhere(own, omega),
}


def losses_at(omega):
    losses = score(predict(trained, images, omega), unseen)
    return np.array([losses[task] for task in TASKS])


at_own = losses_at(everywhere(own, own))
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
for axis, (title, mode) in zip(axes, modes.items(), strict=True):
    curves = np.stack([losses_at(mode(jnp.full(3, omega))) for omega in sweep]) / at_own
    for task, curve, omega, colour in zip(TASKS, curves.T, own, COLOURS, strict=False):
        axis.semilogy(sweep, curve, "-o", ms=3, color=colour, label=task)
        axis.axvline(omega, color=colour, ls=":", lw=1)
    axis.axhline(1, color="0.7", lw=0.8)
    axis.set(title=title, xlabel="frequency $\\omega$ given to every task")
    axis.set_yticks([0.8, 1, 2, 4, 8], ["0.8", "1", "2", "4", "8"])
    axis.minorticks_off()
axes[0].set_ylabel("loss / loss at own frequency")
axes[2].legend(title="task (own $\\omega$ dotted)", loc="upper center")
plt.show()

# %% [markdown]
# Each valley lies at or beside its own dotted line: a frequency is an address. In the backbone the
# dial turns *directions*, as the cosine above says. In the decoder it is mostly a volume knob:
# $\mu$ is small there and the kernels are nearly collinear, but each task's batch norm remembers
# the volume that it was trained with.
#
# ### And in pictures
#
# One scene. From left to right the dial goes from the first task's frequency to the last one's;
# each task's own station is framed.

# %%
SCENE = 11
stations = [own[0], (own[0] + own[1]) / 2, own[1], (own[1] + own[2]) / 2, own[2]]

fig = plt.figure(figsize=(11, 4.9))
grid = fig.add_gridspec(3, len(stations) + 2)
show(fig.add_subplot(grid[0, 0]), unseen["image"][SCENE], title="image")
for row, task in enumerate(tasks):
    truth = task.picture(unseen["labels"][task.name][SCENE])
    title = "truth" if row == 0 else None
    show(fig.add_subplot(grid[row, 1]), truth, ylabel=task.name, title=title)
for column, omega in enumerate(stations, 2):
    logits = predict(trained, images, jnp.full(3, omega))
    losses = score(logits, unseen)
    for row, task in enumerate(tasks):
        axis = fig.add_subplot(grid[row, column])
        prediction = np.asarray(task.predict(logits[task.name])[SCENE])
        title = f"$\\omega$ = {omega:.2f}" if row == 0 else None
        show(axis, task.picture(prediction), title=title)
        axis.set_xlabel(f"loss {losses[task.name]:.2f}")
        if omega == own[row]:
            axis.spines[:].set(visible=True, color=COLOURS[row], linewidth=4)
fig.suptitle("Predictions at five positions of the dial (losses over all 16 scenes)")
plt.show()

# %% [markdown]
# Image, weights and heads stayed the same in every column; only the number changed. On the way from
# its own frequency to a neighbour's, a task's head is handed features that were made for the
# neighbour.
#
# ## What to take along
#
# * A task is one number. Whether it selects a *direction* or only a *volume* is decided by the
#   modulation index $\mu = \omega\,\mathrm{std}(M)$: well below 1, all tasks share one direction.
# * The start decides $\mu$: zero at the zero start, of order one at the anchored start.
# * So look before you believe: `model.apply(variables, method="diagnostics")` reports frequencies,
#   modulation index and update cosine; every training run logs them and warns of a collapse.
# * Different kernels are not yet better predictions. What switching is worth against a shared LoRA,
#   a gain a task or split ranks is a matter of measurement, at equal parameters: `docs/claims.md`.
