"""A task's plain weights leaf by leaf: the bits of the whole, and no more read than is needed."""

from __future__ import annotations

import numpy as np
import pytest

from sinewich_jax.convert import fold
from sinewich_jax.convert.task_weights import TaskWeights
from sinewich_jax.core.trees import flatten_paths
from tests.convert import models


@pytest.mark.parametrize("kind", ["sine", "lora", "plain"])
def test_each_leaf_reads_its_own_layer_alone(kind):
    model, variables = models.make(kind)
    folded, flat, seen = fold.fold_task(model, variables, "depth"), flatten_paths(variables), []

    def read(path):
        seen.append(path)
        return flat[path]

    made = TaskWeights(model, flat, read, "depth")
    assert seen == []
    expected = folded.params | folded.branches
    assert {p: leaf.shape for p, leaf in expected.items()} == made.params | made.branches
    for path, leaf in expected.items():
        seen.clear()
        np.testing.assert_array_equal(made.leaf(path), leaf, err_msg=path)
        own = {name.split("/", 2)[2] for name in seen if "/backbone/" in name}
        layers = {"/".join(name.split("/")[:2]) for name in own}
        assert len(layers) == 1 and len(own) <= 5, (path, own)
