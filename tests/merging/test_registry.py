"""The registry: rules describe themselves, and a new one touches no other file."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from sinewich_jax import merging
from sinewich_jax.errors import ConfigError
from sinewich_jax.merging import registry


@pytest.fixture
def rule_table():
    """Puts the table of rules back after a test that registers some."""
    merging.rules()
    before = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(before)
    registry._discover.cache_clear()


def test_every_rule_says_what_it_is():
    rules = {rule.name: rule for rule in merging.rules()}
    assert list(rules) == sorted(rules)
    assert {"average", "task_arithmetic"} <= set(rules)
    for rule in rules.values():
        assert "20" in rule.source
        assert rule.summary.endswith(".")
        assert isinstance(rule.needs, tuple)
    arithmetic = rules["task_arithmetic"].options
    assert arithmetic == {"scale": 0.3, "weights": None, "normalize": False}
    assert rules["average"].streaming
    assert rules["average"].needs == ()


def test_a_new_file_in_the_folder_is_a_new_rule(tmp_path, monkeypatch, rule_table):
    (tmp_path / "first_expert.py").write_text(
        "from sinewich_jax.merging import register\n"
        "@register('first_expert', source='a test of 2026')\n"
        "def first_expert(leaf):\n"
        "    '''The first.'''\n"
        "    return leaf.experts[0]\n"
    )
    package = importlib.import_module("sinewich_jax.merging.methods")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    registry._discover.cache_clear()
    base, expert = {"w": np.zeros(2)}, {"w": np.ones(2)}
    merged = merging.merge("first_expert", base, {"a": expert})
    np.testing.assert_array_equal(merged["w"], expert["w"])
    assert "first_expert" in [rule.name for rule in merging.rules()]
    del sys.modules["sinewich_jax.merging.methods.first_expert"]


def test_a_rule_over_the_whole_model_gets_all_leaves_and_its_required_options(rule_table):
    @merging.register("whole", source="a test of 2026", needs=("curvature",), whole=True)
    def whole(leaves, *, factor):
        """One factor over the number of leaves."""
        number = sum(1 for _ in leaves)
        assert leaves.names == ("x",) and all(len(leaf.stats) == 1 for leaf in leaves)
        return ((leaf.path, leaf.base * factor / number) for leaf in leaves)

    base = {"a": np.ones(2), "b": {"c": np.ones(3, np.float32)}, "n": 4}
    merged = merging.merge("whole", base, {"x": base}, stats={"x": base}, factor=6.0)
    np.testing.assert_array_equal(merged["a"], [3.0, 3.0])
    assert merged["b"]["c"].dtype == np.float32
    assert merged["n"] == 4
    with pytest.raises(ConfigError, match="'whole' needs the option 'factor'"):
        merging.merge("whole", base, {"x": base}, stats={"x": base})
    with pytest.raises(ConfigError, match=r"needs the curvature of every expert .* none of 'x'"):
        merging.merge("whole", base, {"x": base}, factor=1.0)
    with pytest.raises(ConfigError, match="'average' reads no statistics"):
        merging.merge("average", base, {"x": base}, stats={"x": {}})


def test_a_name_is_given_once(rule_table):
    with pytest.raises(ConfigError, match="there is a merge rule 'average' already"):
        merging.register("average", source="a test of 2026")(lambda leaf: leaf.base)
