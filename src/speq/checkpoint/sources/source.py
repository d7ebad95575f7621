"""What a source of weights is: one small interface over Hugging Face directories and GGUF files.

A source knows its tensors by their Hugging Face names, hands out rows of them in the precision they are stored in,
and carries what goes along with the weights: the config, the tokenizer files, and notes that the user should see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from speq.formats.tensor import can_be_split

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
