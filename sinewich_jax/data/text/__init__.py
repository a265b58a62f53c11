"""Texts: examples of several tasks, their tokens, and both as a data source.

Your own texts need no preparation::

    import sinewich_jax as sj
    texts = sj.data.from_texts({"sst2": [("a fine film", 1), ("a dull one", 0)]})
    texts = sj.data.load_texts("nlu", "train", "my_data", tasks=("cola", "rte"))  # a named set
    tokenizer = sj.data.read_tokenizer("all-MiniLM-L6-v2")     # tokenizer.json or vocab.txt in it
    source = sj.data.TextSource(texts, tokenizer, max_tokens=128, repeat=True)

A text is checked once, where a collection of texts is made; a source encodes it once. Tokens need
the library tokenizers (``pip install "sinewich-jax[nlu]"``), which only `tokens` knows.
"""

from __future__ import annotations

from sinewich_jax import lazy

_MODULES = ("lines", "phrases", "source", "texts", "tokens")

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES)
