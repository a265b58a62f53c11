"""Data: sources, joint augmentation, and batches addressed by (seed, step).

Your own data needs no preparation::

    import sinewich_jax as sj
    source = sj.data.from_arrays({"image": images, "semseg": maps})   # [N, H, W, 3], [N, H, W]
    source = sj.data.from_folder("my_data", resize=(224, 224))        # images/, semseg/, depth/ ...
    source = sj.data.load("scenes", "train", image_size=(64, 64))     # a named data set

A source is anything with a length and random access to examples (`source.DataSource`). From there::

    stream = sj.data.batches(source, batch_size=8, seed=0, augment=sj.data.Augment(flip=True))
    batch = stream.batch_at(7)                          # a pure function of (seed, step)
    for batch in stream.iterate(start_step=7, threads=2): ...

Texts of several tasks (`sinewich_jax.data.text`) become a source of the same kind::

    texts = sj.data.load_texts("phrases", "train", tasks=("cola", "mrpc"))
    source = sj.data.TextSource(texts, sj.data.text.phrases.tokenizer(), max_tokens=32, repeat=True)

Names are imported on first use: neither Grain nor TFDS nor tokenizers is touched before it is
needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinewich_jax import lazy

_HOME = {
    "ArraySource": "source",
    "Augment": "augment",
    "Cached": "views",
    "DataSource": "source",
    "FolderSource": "folder",
    "OriginalLabels": "views",
    "Pipeline": "pipeline",
    "Resized": "views",
    "SelectTasks": "views",
    "Subset": "views",
    "Text": "text.texts",
    "TextSource": "text.source",
    "Texts": "text.texts",
    "Tokenizer": "text.tokens",
    "batches": "pipeline",
    "eval_batches": "pipeline",
    "find_root": "registry",
    "fit": "registry",
    "from_arrays": "source",
    "from_folder": "folder",
    "from_texts": "text.texts",
    "default_eval_split": "registry",
    "load": "registry",
    "is_rendered": "registry",
    "is_text": "registry",
    "load_texts": "registry",
    "look_over": "views",
    "names": "registry",
    "read_image": "files",
    "read_tokenizer": "text.tokens",
    "register": "registry",
    "register_kind": "labels",
    "resize_example": "resize",
    "resize_image": "resize",
}
_MODULES = ("augment", "files", "folder", "labels", "pipeline", "registry", "resize", "scenes")
_MODULES += ("sets", "source", "text", "views", "warp")


if TYPE_CHECKING:
    from sinewich_jax.data.augment import Augment  # noqa: F401
    from sinewich_jax.data.files import read_image  # noqa: F401
    from sinewich_jax.data.folder import FolderSource, from_folder  # noqa: F401
    from sinewich_jax.data.labels import register_kind  # noqa: F401
    from sinewich_jax.data.pipeline import Pipeline, batches, eval_batches  # noqa: F401
    from sinewich_jax.data.registry import (  # noqa: F401
        default_eval_split,
        find_root,
        fit,
        is_rendered,
        is_text,
        load,
        load_texts,
        names,
        register,
    )
    from sinewich_jax.data.resize import resize_example, resize_image  # noqa: F401
    from sinewich_jax.data.source import ArraySource, DataSource, from_arrays  # noqa: F401
    from sinewich_jax.data.text.source import TextSource  # noqa: F401
    from sinewich_jax.data.text.texts import Text, Texts, from_texts  # noqa: F401
    from sinewich_jax.data.text.tokens import Tokenizer, read_tokenizer  # noqa: F401
    from sinewich_jax.data.views import (  # noqa: F401
        Cached,
        Resized,
        SelectTasks,
        Subset,
        look_over,
    )

__getattr__, __dir__, __all__ = lazy.attach(__name__, _MODULES, _HOME)
