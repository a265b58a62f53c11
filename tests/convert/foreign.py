"""State dicts and files of other libraries, written here without them.

The names are made by replacing parts of the official ones, one library after the other, and not
from the tables of the package: a wrong row there has to show.
"""

from __future__ import annotations

import io
import pathlib
import struct
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from tests.nn import official_swin

FIXTURES = pathlib.Path(__file__).parent / "fixtures"

_HF = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "embeddings.norm"),
    ("layers.", "encoder.layers."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
)
RENAMES = {
    "hf5": (
        *_HF,
        (".attn.proj.", ".attention.o_proj."),
        (".attn.relative", ".attention.relative_position_bias.relative"),
        *((f".attn.{part}.", f".attention.{part}_proj.") for part in "qkv"),
    ),
    "hf4": (
        *_HF,
        (".attn.proj.", ".attention.output.dense."),
        (".attn.q.", ".attention.self.query."),
        (".attn.k.", ".attention.self.key."),
        (".attn.v.", ".attention.self.value."),
        (".attn.relative", ".attention.self.relative"),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    ),
}


def official_state(name: str = "swin_w7", *, head: bool = True) -> dict[str, np.ndarray]:
    """The state dict of a parity fixture, with or without what a pyramid does not need."""
    state = {
        key.removeprefix("param/"): value
        for key, value in official_swin.load(name).items()
        if key.startswith("param/")
    }
    if head:
        return state
    useless = ("head.", "norm.", "stage_norm.")
    return {
        key: value
        for key, value in state.items()
        if not key.startswith(useless) and not key.endswith(("position_index", "attn_mask"))
    }


def named(state: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """An official state dict under the names of another library."""
    if family == "official":
        return dict(state)
    renamed = {}
    for name, value in state.items():
        if family == "timm":
            first, _, rest = name.partition(".downsample.")
            if rest:
                name = f"layers.{int(first.removeprefix('layers.')) + 1}.downsample.{rest}"
            renamed[name.replace("head.", "head.fc.")] = value
            continue
        parts = {name: value}
        if ".attn.qkv." in name:
            thirds = np.split(value, 3)
            parts = {name.replace("qkv", p): t for p, t in zip("qkv", thirds, strict=True)}
        for key, part in parts.items():
            if key.startswith("head."):
                key = key.replace("head.", "classifier.")
            else:
                key = "swin." + ("layernorm" + key[4:] if key.startswith("norm.") else key)
            for old, new in RENAMES[family]:
                key = key.replace(old, new)
            renamed[key] = part
    return renamed


# --- a torch zip archive, byte by byte ----------------------------------------------------------

_KINDS = {"float32": "Float", "float16": "Half", "int64": "Long", "float64": "Double"}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def name_of(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str,
    kind: str,
    count: int,
    shape: Iterable[int],
    strides: Iterable[int],
    offset: int = 0,
) -> bytes:
    """The instructions that make one tensor."""
    storage = b"(" + text("storage") + name_of("torch", f"{kind}Storage")
    storage += text(key) + text("cpu") + number(count) + b"tQ"
    hooks = name_of("collections", "OrderedDict") + b")R"
    call = b"(" + storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks
    return name_of("torch._utils", "_rebuild_tensor_v2") + call + b"tR"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def archive(pickle: bytes, storages: Mapping[str, bytes], **entries: bytes) -> bytes:
    """The whole file, from the instructions between the protocol and the stop."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr("weights/data.pkl", b"\x80\x02" + pickle + b".")
        file.writestr("weights/byteorder", b"little")
        for key, raw in storages.items():
            file.writestr(f"weights/data/{key}", raw)
        for name, raw in entries.items():
            file.writestr(f"weights/{name}", raw)
        file.writestr("weights/version", b"3\n")
    return buffer.getvalue()


def torch_file(state: Mapping[str, np.ndarray], *wrappers: str) -> bytes:
    """``torch.save`` of a state dict, inside dicts with the keys ``wrappers``, outermost first."""
    items, storages = {}, {}
    for index, (name, array) in enumerate(state.items()):
        strides = np.empty(array.shape, "i1").strides
        kind = _KINDS[array.dtype.name]
        items[name] = tensor(str(index), kind, array.size, array.shape, strides)
        storages[str(index)] = array.tobytes()
    pickle = mapping(items)
    for key in reversed(wrappers):
        pickle = mapping({key: pickle, "epoch": number(7)})
    return archive(pickle, storages)
