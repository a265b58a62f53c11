"""``sinewich bench fusion``: what AdapterFusion costs as adapters are added.

The fields of the file:

* ``width``, ``hidden``, ``batch``, ``tokens``, ``depth``, ``adapters`` (N): the sizes;
* ``layer``: the forward pass of one fusion layer, by form, on what adapters have made: on their
  outputs (``folded``, ``reference``) or their hidden layers (``bottleneck``). ``ms`` of N adapters
  and ``reference_ms`` of one, the median ``ratio`` of ``pairs`` runs in turn, its ``quartiles``,
  and ``products``: which of the adapters' own products are inside the time;
* ``encoder``: the forward pass of a whole encoder with adapters and fusion in every layer,
  likewise, by form;
* ``goal``: the ratio that the forward pass of an encoder is to reach, and ``reached``: by ``layer``
  and ``encoder`` the forms that do;
* ``agreement``: the largest difference between the forms, by the largest entry;
* ``versions``.
"""

from __future__ import annotations

import argparse
from typing import Any

from sinewich_jax.bench.pairs import interleaved
from sinewich_jax.bench.process import versions
from sinewich_jax.errors import ConfigError

_SIZES = {
    "width": (768, "of the encoder"),
    "hidden": (48, "of the bottlenecks"),
    "batch": (8, "texts"),
    "tokens": (128, "of each text"),
    "depth": (2, "layers of the encoder"),
    "adapters": (16, "N, compared with one"),
    "pairs": (9, "runs of each, in turn"),
}
FORMS = ("folded", "bottleneck", "reference")
GOAL = 1.3
"""What a forward pass through the fusion of N adapters may cost over that of one."""
_PRODUCTS = {
    "layer": {"folded": [], "bottleneck": ["up"], "reference": []},
    "encoder": {form: ["down", "up"] for form in FORMS},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this part."""
    for name, (default, text) in _SIZES.items():
        parser.add_argument(
            f"--{name}", metavar="N", type=int, default=default, help=f"{text}; {default}"
        )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times one layer and a whole encoder with N adapters and with one, in turn.

    Returns:
      The fields that the module describes.
    """
    for name in _SIZES:
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}; expected 1 or more")
    import jax

    sizes = {name: getattr(arguments, name) for name in _SIZES if name != "pairs"}
    found, made = {"layer": {}, "encoder": {}}, {}
    for what, program in (("layer", _layer), ("encoder", _encoder)):
        for form in FORMS:
            one, many = (program(form, count, sizes) for count in (1, sizes["adapters"]))
            one()
            made[what, form] = many()
            times = interleaved(one, many, arguments.pairs).summary()
            found[what][form] = times | {"products": _PRODUCTS[what][form]}
    reference = made["layer", "reference"]
    size = max(float(abs(reference).max()), 1e-30)
    return {
        **sizes,
        **found,
        "goal": GOAL,
        "reached": {
            what: [form for form in FORMS if found[what][form]["ratio"] <= GOAL] for what in found
        },
        "agreement": {
            form: float(abs(made["layer", form] - reference).max()) / size for form in FORMS
        },
        "versions": versions() | {"jax": jax.__version__, "device": jax.default_backend()},
    }


def table(found: dict[str, Any]) -> str:
    """The numbers to read: a row a form, and what was to be reached."""
    from sinewich_jax.report.tables import markdown_table

    n = found["adapters"]
    rows = [
        (
            f"{what}, {form}",
            " and ".join(one["products"]) or "none",
            *(f"{one[key]:.2f}" for key in ("reference_ms", "ms", "ratio")),
            f"{one['quartiles'][0]:.2f} to {one['quartiles'][1]:.2f}",
        )
        for what in ("layer", "encoder")
        for form, one in found[what].items()
    ]
    headers = (
        "forward pass",
        "adapters' products inside",
        "1 adapter, ms",
        f"{n} adapters, ms",
        "ratio",
        "quartiles",
    )
    reached = {what: " and ".join(forms) or "no form" for what, forms in found["reached"].items()}
    return (
        f"{markdown_table(headers, rows)}\n"
        f"goal: {n} adapters at {found['goal']} times one; reached by {reached['encoder']} in an "
        f"encoder, by {reached['layer']} in the layer alone"
    )


def _layer(form: str, count: int, sizes: dict[str, int]) -> Any:
    """A fusion layer on what ``count`` adapters have made, as a call that waits for its end."""
    import jax
    import numpy as np

    from sinewich_jax.core import adapters as core

    rng, d, m = np.random.default_rng(0), sizes["width"], sizes["hidden"]

    def draw(*shape: int) -> jax.Array:
        return jax.device_put((rng.standard_normal(shape) / d**0.5).astype(np.float32))

    kernels = core.FusionKernels(draw(d, d), draw(d), draw(d, d), draw(d), draw(d, d))
    query = draw(sizes["batch"], sizes["tokens"], d) * d**0.5
    many = core.Bottleneck(draw(count, d, m), draw(count, m), draw(count, m, d), draw(count, d))
    made = jax.jit(core.bottlenecks)(query, many)
    if form == "bottleneck":
        step = jax.jit(lambda *given: core.fuse_bottlenecks(*given).context)
        given = (query, made.hidden, many, kernels)
    else:
        step = jax.jit(lambda *given: core.fuse(*given, form=form).context)
        given = (query, made.up, kernels)
    return lambda: jax.block_until_ready(step(*given))


def _encoder(form: str, count: int, sizes: dict[str, int]) -> Any:
    """The forward pass of an encoder with ``count`` adapters and fusion in every layer."""
    import jax
    import numpy as np

    from sinewich_jax.nn.bert import Bert
    from sinewich_jax.nn.fusion import AdaptedBert, Fuse

    d, tokens = sizes["width"], sizes["tokens"]
    heads = max(h for h in range(1, 13) if d % h == 0)
    bert = Bert(100, d, sizes["depth"], heads, 4 * d, tokens)
    names = tuple(f"task{n}" for n in range(count))
    model = AdaptedBert(bert, names, sizes["hidden"], fused=True)
    ids = np.random.default_rng(0).integers(0, 100, (sizes["batch"], tokens))
    mask = np.ones_like(ids)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, mask)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: jax.device_put((rng.standard_normal(leaf.shape) / d**0.5).astype(np.float32)),
        shapes,
    )
    step = jax.jit(lambda variables: model.apply(variables, ids, mask, how=Fuse(form)).hidden)
    return lambda: jax.block_until_ready(step(variables))
