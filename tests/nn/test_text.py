"""One model for many text tasks: side by side they are what each would be alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinewich_jax.core.trees import flatten_paths, split_tree, unflatten_paths
from sinewich_jax.nn.bert import TASK_TARGETS, Bert, LinearUpdate
from sinewich_jax.nn.clock import ClockSpec
from sinewich_jax.nn.fusion import Average, Fuse, Only, Plain
from sinewich_jax.nn.task_kernel import KINDS, TaskSpec
from sinewich_jax.nn.text import TRAINABLE_GROUPS, TextModel, path_rules
from tests.tiers import cases

BERT = Bert(vocabulary=20, width=16, depth=2, heads=2, hidden=24, positions=8, dropout=0.3)
HEADS = (("one", 2), ("two", 3), ("score", 1))
NAMES = tuple(name for name, _ in HEADS)
TASKS = len(HEADS)


def text_model(kind: str | None = None, rank: int = 0, **fields) -> TextModel:
    task = None if kind is None else TaskSpec(TASKS, kind, rank=3)
    frequency = 100.0 if kind == "sine_lora" else None
    bert = BERT.clone(update=LinearUpdate(task, rank=rank, frequency=frequency))
    return TextModel(bert, HEADS, ClockSpec(TASKS), **fields)


ADAPTED = {
    "pfeiffer": {"names": NAMES, "hidden": 4},
    "houlsby": {"names": NAMES, "hidden": 4, "placement": "houlsby"},
    "parallel": {"names": NAMES, "hidden": 4, "placement": "parallel", "dropped": (0,)},
}
FUSED = TextModel(BERT, HEADS[:1], ClockSpec(1), NAMES, hidden=4, fused=True)
MODELS = {
    "plain": text_model(),
    **{kind: text_model(kind, rank=2) for kind in KINDS},
    **{name: text_model(**fields) for name, fields in ADAPTED.items()},
    "fused": FUSED,
}


def shapes(model: TextModel) -> dict:
    text = {name: leaf[:, : len(model.heads)] for name, leaf in batch().items()}
    keys = {"params": jax.random.key(0), "anchor": jax.random.key(1)}
    return jax.eval_shape(model.init, keys, text)


def filled(model: TextModel, scale: float = 0.3) -> dict:
    """Noise for all parameters, so that nothing is zero by its start; the norms stay norms."""
    rng = np.random.default_rng(0)

    def fill(path: str, leaf) -> jax.Array:
        noise = jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32)
        return 1 + noise if path.endswith("norm/scale") else noise

    flat = flatten_paths(shapes(model))
    return unflatten_paths({path: fill(path, leaf) for path, leaf in flat.items()})


def batch(rows: int = 2) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    shape = (rows, TASKS, 6)
    lengths = rng.integers(2, 7, shape[:2])
    mask = np.arange(6) < lengths[..., None]
    text = {"ids": rng.integers(0, 20, shape), "mask": mask, "segments": rng.integers(0, 2, shape)}
    return {name: jnp.asarray(leaf) for name, leaf in text.items()}


def answers(model: TextModel, variables: dict, text=None, **options) -> dict[str, jax.Array]:
    text = batch() if text is None else text
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, text)


def of_task(leaf, number: int):
    return leaf[:, number : number + 1]


def close(one, other, tolerance=1e-5):
    scale = 1 + np.abs(other).max()
    np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(other) / scale, atol=tolerance)


@pytest.mark.parametrize(
    "placement",
    ["pfeiffer", *(pytest.param(one, marks=pytest.mark.slow) for one in ("houlsby", "parallel"))],
)
def test_adapters_side_by_side_are_models_of_one_task_each(placement):
    """Values and gradients: no task touches the adapter of another."""
    fields = ADAPTED[placement]
    heads = tuple((name, 2) for name in NAMES)
    model = TextModel(BERT, heads, ClockSpec(TASKS), **fields)
    alone = TextModel(BERT, (("it", 2),), ClockSpec(1), **fields | {"names": ("it",)})
    params = filled(model)["params"]

    def losses(model: TextModel, params: dict, text: dict) -> jax.Array:
        found = model.apply({"params": params}, text)
        return jnp.stack([jnp.square(logits).sum() for logits in found.values()])

    def with_slopes(model: TextModel):
        return jax.jit(lambda *at: (losses(model, *at), jax.jacrev(losses, 1)(model, *at)))

    values, slopes = with_slopes(model)(params, batch())
    flat, slopes, one = flatten_paths(params), flatten_paths(slopes), with_slopes(alone)
    for number, name in enumerate(NAMES):

        def own(tree: dict, number=number, name=name) -> dict:
            tree = {
                path.replace(f"heads/{name}/", "heads/it/"): leaf for path, leaf in tree.items()
            }
            return {
                path: leaf[number : number + 1] if "/adapters_" in path else leaf
                for path, leaf in tree.items()
                if path.startswith(("backbone/", "heads/it/"))
            }

        text = {key: of_task(leaf, number) for key, leaf in batch().items()}
        value, slope = one(unflatten_paths(own(flat)), text)
        close(values[number], value[0])
        found = own({path: leaf[number] for path, leaf in slopes.items()})
        for path, leaf in flatten_paths(slope).items():
            close(found[path], leaf[0], 2e-5)
    for path, leaf in slopes.items():
        if "/adapters_" in path:
            others = leaf[~np.eye(TASKS, dtype=bool)]
            np.testing.assert_array_equal(others, np.zeros_like(others), err_msg=path)


@pytest.mark.parametrize("kind", cases(KINDS, fast=("sine", "independent")))
def test_the_batched_product_is_a_loop_over_the_kernels_of_the_tasks(kind):
    model = text_model(kind)
    variables = filled(model, 0.2)

    def kernels(m: TextModel) -> dict[str, jax.Array]:
        omega = m.frequencies()
        return {
            f"layer{n}/{name}": getattr(layer, name).task_kernels(omega.get(f"layer{n}/{name}"))
            for n, layer in enumerate(m.backbone.encoder.layers)
            for name in TASK_TARGETS
        }

    made = jax.jit(lambda v: model.apply(v, method=kernels))(variables)
    found = answers(model, variables)
    kept = flatten_paths(variables["params"])
    kept = {
        path: leaf for path, leaf in kept.items() if "/task/" not in path and "clock" not in path
    }
    one = jax.jit(text_model().apply)
    for number, name in enumerate(NAMES):
        plain = {
            f"backbone/encoder/{place}/kernel": stack[number % len(stack)]
            for place, stack in made.items()
        }
        expected = one({"params": unflatten_paths(kept | plain)}, batch())[name]
        close(found[name], expected)
    shared = kind in ("lora", "sine_lora")
    assert all(len(stack) == (1 if shared else TASKS) for stack in made.values())


def test_an_anchored_start_leaves_the_encoder_as_it_is():
    model = text_model("sine", rank=2)
    model = model.clone(bert=model.bert.clone(depth=1))
    plain = text_model().clone(bert=BERT.clone(depth=1))

    @jax.jit
    def both(keys, text):
        variables = model.init(keys, text)
        kept = {
            path: leaf
            for path, leaf in flatten_paths(variables["params"]).items()
            if not path.startswith("clock") and "/task/" not in path and "/lora_" not in path
        }
        start = model.apply(variables, text)
        return start, plain.apply({"params": unflatten_paths(kept)}, text)

    keys = {"params": jax.random.key(0), "anchor": jax.random.key(1)}
    start, expected = both(keys, batch())
    for name in NAMES:
        close(start[name], expected[name], 1e-6)


def test_frequencies_can_be_given_for_all_layers_or_for_each():
    model = text_model("sine")
    variables = filled(model, 0.2)
    run = jax.jit(lambda omega: model.apply(variables, batch(), omega))
    own = jax.jit(lambda: model.apply(variables, method="frequencies"))()
    assert model.switching == tuple(f"layer{n}/{name}" for n in (0, 1) for name in TASK_TARGETS)
    assert own.keys() == set(model.switching)
    by_clock, by_layer = run(None), run(own)
    omega = jnp.asarray([0.5, 1.0, 1.5])
    same = dict.fromkeys(model.switching, omega)
    for name in NAMES:
        close(by_layer[name], by_clock[name])
        close(run(same)[name], run(omega)[name])
    # Another frequency of one task, in one layer, changes that task alone.
    moved = run(same | {"layer1/wide": omega.at[1].add(0.7)})
    assert np.abs(moved["two"] - run(same)["two"]).max() > 1e-3
    for name in ("one", "score"):
        close(moved[name], run(same)[name], 1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("groups", [(), *((group,) for group in TRAINABLE_GROUPS)])
def test_rules_put_every_parameter_in_its_place(name, groups):
    model = MODELS[name]
    params = shapes(model)["params"]
    parts = split_tree(params, path_rules(groups, fused=model.fused))
    flat = {label: set(flatten_paths(part)) for label, part in parts.items()}
    trained, frozen = flat["trainable"], flat.get("frozen", set())
    assert trained | frozen == set(flatten_paths(params)) and not trained & frozen
    expected = {path for path in flatten_paths(params) if path.startswith(("heads/", "clock/"))}
    own = "backbone/fusion_" if model.fused else "backbone/adapters_"
    for path in trained | frozen:
        if "/lora_" in path or "/task/" in path or path.startswith(own):
            expected.add(path)
        elif "encoder/" in path:
            norm = "norm/" in path
            if groups == ("all",) or (groups == ("norms",) and norm):
                expected.add(path)
    assert trained == expected


@pytest.mark.parametrize("name", ["lora", "pfeiffer"])
def test_dropout_belongs_to_the_example_and_the_task(name):
    model = MODELS[name]
    update = dataclasses.replace(model.bert.update, dropout=0.4)
    model = model.clone(bert=model.bert.clone(update=update))
    variables = filled(model)
    # The same text in both rows, and as that of every task.
    text = {key: of_task(leaf, 0).repeat(2, 0).repeat(TASKS, 1) for key, leaf in batch(1).items()}
    keys = jax.random.split(jax.random.key(7), 2)

    @jax.jit
    def run(keys):
        logits = model.apply(variables, text, train=True, keys=keys)
        return logits, model.apply(variables, text, keys=keys, method="features")

    (first, vectors), (again, _), (turned, _) = run(keys), run(keys), run(keys[::-1])
    for task in NAMES:
        np.testing.assert_array_equal(first[task], again[task])
        close(turned[task], first[task][::-1], 1e-6)
        assert np.abs(first[task][0] - first[task][1]).max() > 1e-3
    if name == "lora":  # one network for all tasks, so that only what is dropped differs
        assert np.abs(vectors[:, 0] - vectors[:, 1]).max() > 1e-2
    # In test mode nothing is, whatever the keys are.
    calm = jax.jit(lambda keys: model.apply(variables, text, train=False, keys=keys))
    for task in NAMES:
        np.testing.assert_array_equal(calm(keys)[task], calm(keys[::-1])[task])
        close(calm(keys)[task][0], calm(keys)[task][1], 1e-6)


def test_a_fusion_shares_its_attention_among_the_adapters_of_every_token():
    variables = filled(FUSED)
    text = {name: of_task(leaf, 0) for name, leaf in batch().items()}

    def run(how):
        found = jax.jit(lambda v, x: FUSED.apply(v, x, how=how, method="encode"))(variables, text)
        return found.hidden, found.attention

    hidden, attention = run(None)
    assert hidden.shape == (2, 1, 6, 16)
    assert attention.keys() == {"layer0_output", "layer1_output"}
    for shares in attention.values():
        assert shares.shape == (TASKS, 2, 1, 6)
        np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
        assert shares.std(0).max() > 1e-3
    _, fewer = run(Fuse(names=("one", "score")))
    assert all(shares.shape[0] == 2 for shares in fewer.values())
    for how in (Plain(), Only("two"), Average()):
        other, none = run(how)
        assert none == {} and np.abs(other - hidden).max() > 1e-2


def test_without_adapters_a_task_is_the_plain_encoder():
    model = text_model(**ADAPTED["pfeiffer"])
    variables = filled(model)
    plain = {
        path: leaf
        for path, leaf in flatten_paths(variables["params"]).items()
        if "/adapters_" not in path
    }
    expected = answers(text_model(), {"params": unflatten_paths(plain)})
    for name, logits in answers(model, variables, how=Plain()).items():
        close(logits, expected[name], 1e-6)


def test_layers_can_do_without_adapters():
    found = {path.split("/")[1] for path in flatten_paths(shapes(MODELS["parallel"])["params"])}
    assert {name for name in found if name.startswith("adapters")} == {"adapters_layer1_output"}


@pytest.mark.parametrize("name", MODELS)
def test_diagnostics_name_what_switches(name):
    model = MODELS[name]
    found = jax.eval_shape(
        lambda: model.apply(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(model)), method="diagnostics"
        )
    )
    layers = {f"layer{n}/{target}" for n in (0, 1) for target in TASK_TARGETS}
    has_kernels, reads = name in KINDS, name in ("sine", "independent")
    assert set(found) == {"omega", "modulation_index", "pairwise_cosine", "update_cosine"}
    assert set(found["omega"]) == set(found["modulation_index"]) == (layers if reads else set())
    assert set(found["update_cosine"]) == (layers if has_kernels else set())
    assert all(leaf.shape == (TASKS, TASKS) for leaf in found["pairwise_cosine"].values())


def test_a_batch_has_one_text_of_each_task():
    text = {name: of_task(leaf, 0) for name, leaf in batch().items()}
    with pytest.raises(AssertionError):
        jax.eval_shape(lambda: text_model().init(jax.random.key(0), text))
