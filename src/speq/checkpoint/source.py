"""Where weights come from: one small interface over Hugging Face directories and GGUF files.

A source knows its tensors by their Hugging Face names, hands out rows of them in the precision they are stored in,
and carries what goes along with the weights: the config, the tokenizer files, and notes that the user should see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import xxhash
from numpy.typing import NDArray

from speq.bits.tensor import can_be_split
from speq.checkpoint.digests import data_digest, recall, remember, stamp
from speq.checkpoint.layout import MANIFEST
from speq.checkpoint.storage import Progress
from speq.errors import SpeqError

SIXTEEN_BIT = ("F16", "BF16")
FLOATS = ("F16", "BF16", "F32", "F64")
INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's Hugging Face name, shape (rows first) and stored type, named as in safetensors or in GGUF (Q4_K)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def quantised(self) -> bool:
        """Whether the stored values are codes of a quantised type, to be dequantised on reading."""
        return self.dtype not in FLOATS + INTEGERS

    @property
    def is_matrix(self) -> bool:
        """Whether this is a weight matrix, which gets split; everything else is kept as it is."""
        return len(self.shape) == 2 and can_be_split(self.shape[0], self.shape[1]) and self.dtype not in INTEGERS


class Source(Protocol):
    """A checkpoint to read from.

    Attributes:
        name: what to call the model.
        path: the file or directory it was opened from.
        config: the keys of a Hugging Face ``config.json``.
        config_is: what to call the place that the config was read from.
        all_tensors_count: whether a tensor that the model does not read would be read elsewhere, so that leaving it out
            changes the model; else it is ignored elsewhere, too.
        tensors: all tensors, in the order they are to be stored.
        notes: one line each about what reading them changes.
        originals: the names that tensors had where they came from, of those that had others or several.
        files: tokenizer files to carry along, by file name.
        weight_files: the files that hold the weights.
        data: the same files, each with the byte at which its tensors begin.
        layout: what the weights are besides that data, JSON-able: how each tensor is found in it and read.
    """

    name: str
    path: Path
    config: dict[str, Any]
    config_is: str
    all_tensors_count: bool
    tensors: list[TensorInfo]
    notes: list[str]
    originals: dict[str, list[str]]
    files: dict[str, bytes]
    weight_files: list[Path]
    data: list[tuple[Path, int]]
    layout: dict[str, Any]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of a tensor: uint16 bits for F16 and BF16, float32 for quantised types, else the type it has."""
        ...


Check: TypeAlias = Callable[[Source], Source]
"""Looks at a source before any work: refuses it by raising SpeqError, or returns what is to be read in its place."""


class NamedSource:
    """A source whose tensors go by other names, one or several of which may be the same tensor.

    Args:
        source: where they are read from.
        tensors: by their names here.
        stored: for each name here those of the source; the first is read.
        notes: in place of the source's.
    """

    def __init__(
        self, source: Source, tensors: list[TensorInfo], stored: dict[str, list[str]], notes: list[str]
    ) -> None:
        self._source, self._stored = source, stored
        self.name, self.path, self.config = source.name, source.path, source.config
        self.config_is, self.all_tensors_count = source.config_is, source.all_tensors_count
        self.files, self.weight_files = source.files, source.weight_files
        self.data, self.layout = source.data, source.layout
        self.tensors = sorted(tensors, key=lambda info: natural_order(info.name))
        self.notes = notes
        self.originals = {name: names for name, names in stored.items() if names != [name]}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """See :meth:`Source.read`."""
        return self._source.read(self._stored[name][0], start, stop)


def natural_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key for the order a step reads them in: embeddings, layers in numeric order, the final norm, the head."""
    layered = re.search(r"\.\d+\.", name) is not None
    group = 1 if layered else 0 if "embed" in name else 2 if "norm" in name else 3
    parts = re.split(r"(\d{1,18})", name)  # longer runs of digits are no numbers of layers
    return group, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def open_source(path: Path, *, dither: int | None = None) -> Source:
    """Open a Hugging Face directory or a ``.gguf`` file.

    Args:
        path: directory with ``config.json`` and safetensors weights, or a GGUF file.
        dither: seed of the noise that spreads quantised weights within their steps (GGUF only), None for no noise.

    Raises:
        SpeqError: nothing readable there, a damaged file, or weights of a kind that cannot be read.
    """
    if not path.exists():
        raise SpeqError(f"{path} does not exist")
    if path.is_dir():
        if (path / MANIFEST).exists():
            raise SpeqError(f"{path} is converted already; convert the original, or get it back with speq restore")
        from speq.checkpoint.huggingface import HuggingFaceSource

        if dither is not None:
            raise SpeqError(f"--dither needs a quantised GGUF file; {path} is a directory of unquantised weights")
        return HuggingFaceSource(path)
    from speq.checkpoint.gguf import GGUFSource

    return GGUFSource(path, dither=dither)


def identity(path: Path, progress: Progress | None = None) -> str:
    """A name for the content of a source: equal for equal content wherever it lies, whatever its files' times say.

    It has two halves, ``weights-carried``. The first comes from every byte of the tensors' data and from what the
    source makes of it: names, types, shapes and places. The second comes from what is written beside the converted
    weights: the config and all carried files. See :mod:`speq.checkpoint.digests` for why this is fast.

    Args:
        path: a Hugging Face directory or a GGUF file.
        progress: called with counts of bytes while large files are read.

    Raises:
        SpeqError: as for :func:`open_source`; a file cannot be read or is being written to.
    """
    if not path.is_file():
        return identity_of(open_source(path), progress)
    # What is carried from a GGUF file is made from its metadata, which takes a second or two.
    seen, what = stamp(path), f"identity as seen by {_code()}"
    known = recall(path, what)
    if known is None:
        known = identity_of(open_source(path), progress)
        remember(path, what, known, seen)
    return known


def identity_of(source: Source, progress: Progress | None = None) -> str:
    """The :func:`identity` of a source that is open."""
    carried = {name: xxhash.xxh3_128_hexdigest(content) for name, content in sorted(source.files.items())}
    done, total = 0, sum(stamp(path)[0] - begin for path, begin in source.data)

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None and done < total:
            progress(f"reading {source.path.name}", done, total)

    data = [data_digest(path, begin, read) for path, begin in source.data]
    return f"{_digest_of([source.layout, data])}-{_digest_of([source.config, carried])}"


def same_weights(one: str, other: str) -> bool:
    """Whether two identities are of the same weights, whatever lies beside them."""
    return "-" in one and one.partition("-")[0] == other.partition("-")[0]


def _digest_of(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _code() -> str:
    """Changes when this package is installed again or edited: it may then read the same file differently."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return _digest_of([[file.name, *stamp(file)[:2]] for file in files])
