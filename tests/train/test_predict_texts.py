"""``sinewich predict`` on texts: answers of the model itself, in files, or a clear refusal."""

from __future__ import annotations

import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest

from sinewich_jax import cli, data
from sinewich_jax.errors import ConfigError, DataError
from sinewich_jax.train import predict_texts
from tests.train.runs import CONFIG, save_run, text_config

TEXTS = [" ".join(text.first.split()) for text in data.load_texts("phrases", "val")["sst2"][:40]]


def config(*tasks: str, words: str = "adapters"):
    return dataclasses.replace(text_config(words), tasks=tasks)


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "singles"
    return folder, *save_run(folder, config("cola", "sst2"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    save_run(folder, config("sst2", "rte", "sts", words="sinewich"))
    return folder


def test_answers_are_those_of_the_model(singles):
    folder, made, _ = singles
    predictor = predict_texts.TextPredictor(folder)
    done = []
    answers = predictor(TEXTS, advance=done.append)
    assert done == [32, 40] and answers.cut == 0 and predictor.step == 7
    texts = data.from_texts({task: [(text, 0) for text in TEXTS] for task in ("cola", "sst2")})
    source = data.TextSource(texts, made.experiment.tokenizer, predictor.max_tokens, repeat=False)
    batch = jax.tree.map(lambda *rows: np.stack(rows), *[source[i]["text"] for i in range(40)])
    logits = made.experiment.model.apply(predictor._made.variables, batch)
    for task in made.experiment.tasks:
        shares = jax.nn.softmax(logits[task.name])
        np.testing.assert_allclose(answers.probabilities[task.name], shares, atol=1e-5)
        np.testing.assert_array_equal(answers.values[task.name], shares.argmax(-1))
    # A task alone is asked with the others' adapters beside it, and hears nothing of them.
    alone = predict_texts.TextPredictor(folder, ["sst2"])(TEXTS[:3])
    assert alone.values.keys() == {"sst2"}
    np.testing.assert_allclose(
        alone.probabilities["sst2"], answers.probabilities["sst2"][:3], atol=1e-6
    )


def test_files_of_texts_become_files_of_answers(singles, tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    # Editors of Windows begin a file with a mark that is no part of its first text.
    notes.write_text("".join(f"{text}\n" for text in TEXTS[:3]), encoding="utf-8-sig")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.write(json.dumps({"a": TEXTS[3], "y": "whatever"}) + "\n")
    (tmp_path / "names.json").write_text(json.dumps({"cola": ["bad", "good"]}))
    words = ["predict", str(singles[0]), str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--classes", str(tmp_path / "names.json")]) == 0
    assert "4 texts, step 7" in capsys.readouterr().out
    answers = predict_texts.TextPredictor(singles[0])(TEXTS[:4])
    for task, names in (("cola", ("bad", "good")), ("sst2", ("negative", "positive"))):
        rows = [
            json.loads(line)
            for name in ("notes", "more")
            for line in (tmp_path / "out" / task / f"{name}.jsonl").read_text().splitlines()
        ]
        assert [row["a"] for row in rows] == TEXTS[:4]
        assert [row["y"] for row in rows] == answers.values[task].tolist()
        assert [row["name"] for row in rows] == [names[row["y"]] for row in rows]
        shares = answers.probabilities[task].max(axis=1)
        np.testing.assert_allclose([row["p"] for row in rows], shares, rtol=1e-5)


def test_answers_replace_no_file_that_is_asked_about(singles, tmp_path, capsys):
    path = tmp_path / "sst2" / "notes.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"a": TEXTS[0], "y": 1}) + "\n")
    before = path.read_bytes()
    assert cli.main(["predict", str(singles[0]), str(path), "--out", str(tmp_path)]) == 2
    assert "answers would replace" in capsys.readouterr().err
    assert path.read_bytes() == before and not (tmp_path / "cola").exists()


def test_pairs_and_single_texts_are_asked_for_apart(mixed, tmp_path, capsys):
    with pytest.raises(ConfigError, match="sst2 is over single texts and rte over pairs"):
        predict_texts.TextPredictor(mixed)
    with pytest.raises(ConfigError, match="did you mean 'sts'"):
        predict_texts.TextPredictor(mixed, ["stss"])
    with pytest.raises(ConfigError, match="the tasks are the one name 'rte', expected a list"):
        predict_texts.TextPredictor(mixed, "rte")
    predictor = predict_texts.TextPredictor(mixed, ["rte", "sts"])
    answers = predictor([(TEXTS[0], TEXTS[1])])
    assert answers.probabilities.keys() == {"rte"}
    assert answers.values["sts"].dtype == np.float32 and answers.values["sts"].shape == (1,)
    long = " ".join(TEXTS)
    assert predictor([(long, TEXTS[0]), ("the thief", "the gift")] * 20).cut == 20
    for given, told in (
        ([TEXTS[0]], "text 0 has one text, expected two"),
        ([(TEXTS[0], " ")], "text 0 has the empty text ' '"),
        ([], "no text to answer about"),
        ("cat", "the one text 'cat', expected a list of texts"),
        ([3], "text 0 is 3, expected a text or a pair of texts"),
        ([("a", "b", "c")], "text 0 is .*, expected a text or a pair of texts"),
        ([b"ab"], "text 0 is b'ab', expected a text or a pair of texts"),
    ):
        with pytest.raises(DataError, match=told):
            predictor(given)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"a": TEXTS[0], "b": long}) + "\n")
    words = ["predict", str(mixed), str(path), "--tasks", "sts", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "1 texts, 1 cut at 24 tokens, step 7" in capsys.readouterr().out
    (row,) = (tmp_path / "out" / "sts" / "pairs.jsonl").read_text().splitlines()
    assert json.loads(row).keys() == {"a", "b", "y"}


def test_what_is_no_file_of_texts_is_named(singles, tmp_path, capsys):
    for name, content in {
        "empty.txt": "",
        "blank.txt": f"{TEXTS[0]}\n\n",
        "list.jsonl": "[1]\n",
        "half.jsonl": '{"a": ',
        "other.jsonl": '{"text": "a"}\n',
        "photo.png": "",
        "broken.jsonl.gz": "no gzip",
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "folder").mkdir()
    for name, told in {
        "empty.txt": "empty.txt is empty, expected a text a line",
        "blank.txt": "line 2 of {} has the empty text ''",
        "list.jsonl": "line 1 of {} holds a list, expected an object",
        "half.jsonl": "line 1 of {} is not JSON",
        "other.jsonl": "line 1 of {} lacks the field 'a' (found: text)",
        "photo.png": "photo.png is no file of texts, expected a name in .jsonl, .jsonl.gz, .txt",
        "broken.jsonl.gz": "cannot be read (Not a gzipped file",
        "gone.txt": "does not exist, expected text files or folders of them",
        "folder": "holds no text file",
    }.items():
        path = tmp_path / name
        words = ["predict", str(singles[0]), str(path), "--out", str(tmp_path / "out")]
        assert cli.main(words) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and told.format(path) in line
    assert cli.main([*words[:2], str(tmp_path), *words[3:], "--side", "64"]) == 2
    assert "--side is about images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_on_images_answers_about_no_text(tmp_path):
    save_run(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"takes runs on texts, .* \(semseg, depth\) read images"):
        predict_texts.TextPredictor(tmp_path)
