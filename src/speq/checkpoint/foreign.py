"""What is given for 16-bit weights and is something else: files, recognised by what is in them, and quantised
checkpoints, told by the names of their tensors.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

_HEAD = 1024  # bytes that tell
_OLD_GGML = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}  # stored as little-endian numbers
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
}
_FETCH = "download the file itself again"
_PICKLE = (
    "is a pickled PyTorch checkpoint, which can run any code when it is read: get the model as safetensors, or save it "
    "with transformers' save_pretrained and give that directory"
)


def describe_file(path: Path, expected: Literal["gguf", "safetensors", "json"]) -> str | None:
    """What a file is that cannot be read as what was expected, and the way out; None if that is not known.

    The answer completes a sentence that begins with the file's name. A file that is what was expected, damaged, or
    that cannot be read at all is not known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    is_json = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    kind = "gguf" if head[:4] == b"GGUF" else "json" if is_json else "safetensors" if head[8:9] == b"{" else None
    if kind == expected:
        return None
    return _text(head) or _other_weights(path, head) or _archive(path, head)


def _text(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return f"is empty: {_FETCH}"
    if not head.strip(b"\0"):
        return f"begins with zeros, as a download that was cut off leaves it: {_FETCH}"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a git-lfs pointer and not the file itself: run `git lfs pull` in its directory"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return f"is a web page, perhaps one that asks to log in or says what went wrong: {_FETCH}"
    if start.startswith(b"{"):
        return "is JSON and not weights: give the directory that it lies in"
    return None


def _other_weights(path: Path, head: bytes) -> str | None:
    if head[:4] in _OLD_GGML:
        return (
            f"is in the {_OLD_GGML[head[:4]]} format, which GGUF replaced in 2023: get the model as GGUF or safetensors"
        )
    if head[:4] == b"GGUF":
        return "is a GGUF file: give its own path"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        whole = (path.parent / "config.json").is_file()
        way = (
            f"give its directory, {path.parent}" if whole else "get the config and the tokenizer that belong to it, too"
        )
        return f"holds the weights of a model without its config: {way}"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    if head[:1] == b"\x08" and 1 <= head[1] < 32 and head[2:3] in (b"\x12", b"\x3a", b"\x42", b"\x1a"):
        return "is an ONNX model: get the checkpoint that it was made from"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "is an HDF5 file (Keras, TensorFlow): get the model as safetensors"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model: get the checkpoint that it was made from"
    if head.startswith(b"\x93NUMPY"):
        return "is a single NumPy array: get the model as safetensors"
    if head.startswith(b"MZqFpD"):
        return "is a llamafile: take the .gguf file out of it with unzip"
    return None


def _archive(path: Path, head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, io.UnsupportedOperation, NotImplementedError):
            names = ["data.pkl"] if b"data.pkl" in head else []
        if any(name.endswith("data.pkl") for name in names):
            return _PICKLE
        if names and all(name.endswith(".npy") for name in names):
            return "is an archive of NumPy arrays: get the model as safetensors"
        return "is a ZIP archive: unpack it first"
    kind = next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), None)
    kind = kind or ("tar" if head[257:262] == b"ustar" else None)
    return f"is a {kind} archive: unpack it first" if kind else None


class Quantisation(NamedTuple):
    """A method, and a tensor that tells of it."""

    method: str
    tensor: str


# Each method stores codes and what scales them side by side under names of its own, and not every config.json mentions
# it.
_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E8M0")

# In this order: a name that several methods share is told by the names beside it. Each line has what ends the names of
# a matrix's tensors, in place of ".weight" or after it.
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GPTQ", (".qweight", ".g_idx")),
    ("AWQ", (".qweight", ".qzeros")),
    ("GPTQ or AWQ", (".qweight",)),
    ("compressed-tensors", (".weight_packed",)),
    ("compressed-tensors", (".weight_shape", ".weight_scale")),
    ("FP8", (".weight_scale_inv",)),
    ("bitsandbytes", (".absmax",)),
    ("bitsandbytes", (".quant_map",)),
    ("bitsandbytes", (".SCB",)),
    ("MXFP4", (".weight_blocks",)),
    ("MXFP4", ("_blocks", "_scales")),
    ("HQQ", (".W_q",)),
    ("EXL2", (".q_weight",)),
    ("EXL3", (".trellis",)),
    ("AQLM", (".codebooks",)),
    ("QuIP#", (".Qidxs",)),
    ("EETQ", (".qweight_scales",)),
    ("quanto", (".weight._data",)),
    ("MLX", (".weight", ".scales")),
)
_INFIXES = ((".quant_state.", "bitsandbytes"),)


def quantisation_method(dtypes: Mapping[str, str]) -> Quantisation | None:
    """How the weights of a checkpoint are quantised, or None.

    Args:
        dtypes: the stored type of every tensor, a safetensors name, by the tensor's name.
    """
    for name in dtypes:
        for infix, method in _INFIXES:
            if infix in name:
                return Quantisation(method, name)
    for method, endings in _ENDINGS:
        first, *others = endings
        for name in dtypes:
            stem = name.removesuffix(first)
            if stem != name and all(stem + other in dtypes for other in others):
                return Quantisation(method, name)
    for name, dtype in dtypes.items():
        if dtype in _FLOAT8:
            return Quantisation(f"FP8 ({dtype})", name)
    for name in dtypes:
        if name.endswith((".weight_scale", ".weight_scales")):
            return Quantisation("scaled integers", name)
    return None
