"""Files are told apart by their keys."""

from __future__ import annotations

import pytest

from sinewich_jax.convert.family import recognise
from sinewich_jax.convert.names import FAMILIES, branch_rules, rules
from sinewich_jax.errors import CheckpointError
from tests.convert import foreign


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.encoder."])
def test_every_library_is_recognised_under_any_prefix(family, prefix):
    keys = [prefix + key for key in foreign.named(foreign.official_state(), family)]
    inner = "swin." if family.startswith("hf") else ""
    assert recognise(keys, "f") == (family, prefix + inner, (2, 2, 2, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_name_every_parameter_of_a_pyramid_once(family):
    state = foreign.named(foreign.official_state(head=False), family)
    prefix = "swin." if family.startswith("hf") else ""
    keys = [prefix + key for rule in rules(family, (2, 2, 2, 2)) for key in rule.theirs]
    assert sorted(keys) == sorted(state)
    branch = [key for rule in branch_rules(family, (2, 2, 2, 2)) for key in rule.theirs]
    assert len(branch) == len(set(branch)) == 12 and not set(branch) & set(keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            ["patch_embed.proj.weight", "layers.0.blocks.0.attn.logit_scale"],
            "a Swin V2 .*logit_scale.*expected a Swin V1",
        ),
        (["patch_embed.proj.weight", "cls_token", "blocks.0.norm1.weight"], "a plain vision"),
        (["conv1.weight", "bn1.running_mean"], "a convolutional network"),
        (["bert.embeddings.word"], r"no network that is known here \(it starts with 'bert"),
        ([], "it starts with nothing"),
        (["patch_embed_proj/kernel"], "this library's own names already"),
        (
            ["student.patch_embed.proj.weight", "teacher.patch_embed.proj.weight"],
            "holds 2 networks, under 'student.' and 'teacher.'",
        ),
        (
            ["patch_embed.proj.weight", "layers.0.blocks.99999999999.attn.x"],
            "no network that is known here",
        ),
        (
            ["patch_embed.proj.weight", "layers.7777777.blocks.0.relative_position_bias_table"],
            "no network that is known here",
        ),
    ],
)
def test_other_architectures_are_named(keys, words):
    with pytest.raises(CheckpointError, match=words):
        recognise(keys, "weights.pth")
