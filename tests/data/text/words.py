"""A tiny BERT vocabulary on disk, in both of the forms that folders have."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from sinewich_jax.data.text.tokens import Tokenizer, read_tokenizer

PIECES = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "film", "fine", "dull", "##er", "##s", "the", "cafe", ",", ".", "it", "rain"),
)


def vocabulary_folder(path: Path, pieces=PIECES, config: dict | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return path


def json_folder(path: Path, pieces=PIECES, **options) -> Path:
    """As transformers writes it, with a template in place of BERT's own post-processor."""
    path.mkdir(exist_ok=True)
    ids = {piece: index for index, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer(**options)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    inner.add_special_tokens([piece for piece in pieces if piece.startswith("[")])
    inner.enable_truncation(4)
    inner.enable_padding(length=7, pad_id=ids["[PAD]"])
    inner.save(str(path / "tokenizer.json"))
    return path


def tiny_tokenizer(path: Path) -> Tokenizer:
    return read_tokenizer(vocabulary_folder(path))
