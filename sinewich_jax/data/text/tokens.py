"""Tokens of texts; the only place that knows the library tokenizers, and loads it on first use.

    tokenizer = read_tokenizer("all-MiniLM-L6-v2")
    ids, mask, segments, cut = tokenizer.encode(["a fine film"], None, max_tokens=16)

Texts are cut and joined as transformers does with ``truncation="longest_first"``: its tokenizers
are the same library.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.data.text.texts import check_several
from sinewich_jax.errors import ConfigError, DataError

FILES = ("tokenizer.json", "vocab.txt")
"""What a folder may hold, the first found is read."""

LEAST_SHARE, ROUNDED_TO = 0.98, (8, 16, 32, 64, 128)
"""A tokenizer with a smaller share of an encoder's rows than this belongs to another encoder,
unless its table is only rounded up.

Encoders often have a few rows more than their tokenizer has words, because a table whose height
divides by 64 or 128 is faster. The cased words of BERT are 95 % of the uncased ones."""

_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
"""The special tokens of BERT, by the keys of tokenizer_config.json."""

_PADDING = ("[PAD]", "<pad>")


class Encoded(NamedTuple):
    """A batch of texts as arrays; L is ``max_tokens``.

    Attributes:
      ids: int32 [N, L], padded on the right.
      mask: bool [N, L], False where there is only padding.
      segments: int32 [N, L], which text of a pair a token belongs to; 0 in padding.
      cut: how many of the N were shortened to L tokens.
    """

    ids: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    cut: int


class Tokenizer:
    """Texts to ids.

    Attributes:
      vocabulary: the largest id + 1, added tokens included.
      padding: id of the padding token.
      segments: how many segments it tells apart in a pair.
      name: where it came from, for messages.
    """

    def __init__(self, inner: Any, padding: int, name: str):
        """Takes a ``tokenizers.Tokenizer``; :func:`read_tokenizer` makes one from files."""
        inner.no_padding()
        self._inner, self.padding, self.name = inner, padding, name
        self.vocabulary = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.segments = max(inner.encode("a", "b").type_ids, default=0) + 1

    @functools.cached_property
    def mark(self) -> str:
        """``sha256:...`` of all tokens and their ids; other ids make other texts of the same words.

        What a file says beside them (how it was written, how texts are cut) is not in it.
        """
        ids = sorted(self._inner.get_vocab(with_added_tokens=True).items())
        return f"sha256:{hashlib.sha256(json.dumps(ids).encode()).hexdigest()}"

    def encode(
        self,
        firsts: Sequence[str],
        seconds: Sequence[str] | None,
        max_tokens: int,
        where: Callable[[int], str] = "text {}".format,
    ) -> Encoded:
        """Encodes texts, or pairs of them, with the special tokens of the encoder.

        Args:
          firsts: N texts.
          seconds: None, or the N texts that stand behind them.
          max_tokens: L; of a longer text the end is cut, of a longer pair that of the longer text
            first.
          where: names a text in errors, called with its number from 0.

        Returns:
          The arrays.

        Raises:
          ConfigError: ``max_tokens`` leaves no place for a token of each text.
          DataError: one bare text in place of several, not as many second texts as first ones, or a
            text without a token (of nothing but invisible characters, say).
        """
        check_several(firsts)
        check_several(seconds)
        texts = 1 if seconds is None else 2
        special = self._inner.num_special_tokens_to_add(seconds is not None)
        if max_tokens < special + texts:
            raise ConfigError(
                f"max_tokens is {max_tokens}, expected at least {special + texts}: {special} "
                f"special tokens and one of {'the text' if texts == 1 else 'each text'}"
            )
        if seconds is not None and len(seconds) != len(firsts):
            raise DataError(f"{len(seconds)} second texts stand behind {len(firsts)} first ones")
        self._inner.enable_truncation(max_tokens, strategy="longest_first")
        ids = np.full((len(firsts), max_tokens), self.padding, np.int32)
        mask = np.zeros(ids.shape, bool)
        segments = np.zeros(ids.shape, np.int32)
        cut = 0
        # One by one: a batch would start threads, of which the library warns at every later fork.
        for row, first in enumerate(firsts):
            given = (first, None if seconds is None else seconds[row])
            found = self._inner.encode(*given)
            if empty := set(range(texts)).difference(found.sequence_ids):
                raise DataError(
                    f"{where(row)} has {given[min(empty)]!r}, in which the tokenizer of "
                    f"{self.name} finds no token, expected words; leave it out"
                )
            length = len(found.ids)
            ids[row, :length], segments[row, :length] = found.ids, found.type_ids
            mask[row, :length] = True
            cut += bool(found.overflowing)
        return Encoded(ids, mask, segments, cut)

    def check(self, vocabulary: int, where: str) -> None:
        """Refuses to go with an encoder that was trained on another tokenizer's ids.

        Args:
          vocabulary: rows of the encoder's table of words; it may have some more than the
            tokenizer has words.
          where: names the encoder.

        Raises:
          DataError: ids beyond the table, or more rows than padding of a table explains.
        """
        rounded = [-(-self.vocabulary // height) * height for height in ROUNDED_TO]
        few_more = self.vocabulary <= vocabulary <= self.vocabulary / LEAST_SHARE
        if few_more or vocabulary in rounded:
            return
        raise DataError(
            f"the tokenizer of {self.name} has {self.vocabulary} tokens and {where} has "
            f"{vocabulary} rows for them, expected as many or a few more rows than tokens; take "
            "the tokenizer that lies beside the encoder"
        )


def read_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face folder.

    Args:
      folder: with ``tokenizer.json``, or with ``vocab.txt`` (BERT's word pieces; in lower case
        unless ``tokenizer_config.json`` says ``"do_lower_case": false``).

    Returns:
      The tokenizer.

    Raises:
      ConfigError: the library tokenizers is not installed.
      DataError: neither file is there, or one is damaged.
    """
    library = _library()
    folder = Path(folder)
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds no tokenizer, expected {' or '.join(FILES)} in it")
    config = _read_config(folder / "tokenizer_config.json")
    read = _read_json if path.name == FILES[0] else _read_vocabulary
    with _as_data_error(path):
        inner = read(library, path, config)
        inner.no_truncation()
        inner.encode("a", "b")  # Some damage is only seen in use.
    return Tokenizer(inner, _padding_id(inner, path, config), str(folder))


def word_level(words: Sequence[str], name: str) -> Tokenizer:
    """A tokenizer made in memory: lower-case words and marks, each a token.

    Args:
      words: ids by position; the special tokens [PAD], [UNK], [CLS] and [SEP] among them.
      name: names it in messages.

    Raises:
      ConfigError: the library tokenizers is not installed.
    """
    library = _library()
    ids = {word: index for index, word in enumerate(words)}
    inner = library.Tokenizer(library.models.WordLevel(ids, unk_token="[UNK]"))
    _finish_as_bert(library, inner, _SPECIAL)
    return Tokenizer(inner, ids["[PAD]"], name)


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "texts are cut into tokens with the library tokenizers, which is not installed; pip "
            'install "sinewich-jax[nlu]"'
        ) from None
    return tokenizers


@contextlib.contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Turns whatever the library says about a file into one sentence."""
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        # The library raises Exception itself, and its panics are a BaseException without a name
        # that could be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{path} is no tokenizer ({error}); fetch it again") from None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds a {type(config).__name__}, expected an object of settings")
    return config


def _read_json(library: ModuleType, path: Path, config: Mapping[str, Any]) -> Any:
    del config
    text = path.read_text("utf-8")
    inner = library.Tokenizer.from_str(text)
    # The library panics over this one, and a panic writes a stack to the user's terminal.
    template = json.loads(text).get("post_processor") or {}
    pieces = (piece for form in ("single", "pair") for piece in template.get(form, ()))
    named = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
    if missing := sorted(named - set(template.get("special_tokens", ()))):
        raise DataError(f"{path} has no ids for its {', '.join(missing)}; fetch it again")
    return inner


def _read_vocabulary(library: ModuleType, path: Path, config: Mapping[str, Any]) -> Any:
    """As transformers makes a tokenizer of BERT from a list of word pieces."""
    with path.open(encoding="utf-8") as file:
        ids = {line.rstrip("\n"): index for index, line in enumerate(file)}
    names = {key: _content(config.get(key)) or usual for key, usual in _SPECIAL.items()}
    for token in names.values():
        if token not in ids and token != names["mask_token"]:
            raise DataError(f"{path} lacks the token {token!r}, expected a vocabulary of BERT")
    inner = library.Tokenizer(library.models.WordPiece(ids, unk_token=names["unk_token"]))
    _finish_as_bert(
        library,
        inner,
        names,
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    return inner


def _finish_as_bert(
    library: ModuleType, inner: Any, names: Mapping[str, str], **normalizer: Any
) -> None:
    """Gives a model of words what stands before and behind it in BERT."""
    inner.normalizer = library.normalizers.BertNormalizer(**normalizer)
    inner.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    ends = [(names[key], inner.token_to_id(names[key])) for key in ("sep_token", "cls_token")]
    inner.post_processor = library.processors.BertProcessing(*ends)
    inner.add_special_tokens([t for t in names.values() if inner.token_to_id(t) is not None])


def _padding_id(inner: Any, path: Path, config: Mapping[str, Any]) -> int:
    if inner.padding is not None:
        return inner.padding["pad_id"]
    for token in (_content(config.get("pad_token")), *_PADDING):
        if token is not None and (found := inner.token_to_id(token)) is not None:
            return found
    raise DataError(
        f"{path} has no padding token, expected one of {', '.join(_PADDING)} or the one that "
        "tokenizer_config.json names as pad_token"
    )


def _content(token: Any) -> str | None:
    """A special token of a configuration, which may be an object around its text."""
    return token.get("content") if isinstance(token, dict) else token
