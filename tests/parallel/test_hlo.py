from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sinewich_jax.parallel import count_collectives, make_mesh

NONE = {
    "all-reduce": 0,
    "all-gather": 0,
    "reduce-scatter": 0,
    "all-to-all": 0,
    "collective-permute": 0,
}


def compiled(function, out):
    """``function`` on rows spread over eight devices, with the result laid out as ``out``."""
    mesh = make_mesh()
    rows = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    return jax.jit(function, out_shardings=NamedSharding(mesh, out)).lower(rows).compile()


@pytest.mark.parametrize(
    ("function", "out", "expected"),
    [
        (lambda x: 2 * x, P("data"), {}),
        (lambda x: x.sum(), P(), {"all-reduce": 1}),
        (lambda x: 2 * x, P(), {"all-gather": 1}),
        (lambda x: 2 * x, P(None, "data"), {"all-to-all": 1}),
    ],
)
def test_compiled_programs(function, out, expected):
    assert count_collectives(compiled(function, out)) == NONE | expected


def test_text_forms():
    text = """
      %all-reduce.5 = (f32[2]{0}, f32[3]{0}) all-reduce(f32[2]{0} %a, f32[3]{0} %b), to_apply=%add
      %s = ((f32[2]), f32[8]) all-gather-start(f32[2]{0} %a), dimensions={0}
      %d = f32[8]{0} all-gather-done(%s)
      ROOT %copy = f32[2]{0} copy(f32[2]{0} %all-reduce.5)
      %p = f32[2]{0} collective-permute(f32[2]{0} %a), source_target_pairs={{0,1}}
      %r = f32[2]{0} reduce-scatter(f32[16]{0} %a), dimensions={0}
      %all-to-all-like = f32[2]{0} add(f32[2]{0} %all-to-all, f32[2]{0} %p)
    """
    assert count_collectives(text) == {
        "all-reduce": 1,
        "all-gather": 1,
        "reduce-scatter": 1,
        "all-to-all": 0,
        "collective-permute": 1,
    }
