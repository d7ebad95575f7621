"""The safetensors container, read and written as raw bytes.

The official library hands out tensors of a framework and has no BF16 without one. A converted checkpoint is mapped
into memory as it lies on disk, with planes aligned to 64 bytes, so a small reader and writer of our own is simpler.
The container is an 8-byte little-endian header length, a JSON header padded with spaces, and the tensors' bytes with
no gap between them (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.foreign import describe_file
from speq.errors import SpeqError

ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000  # the official library's own limit
_MOST_DIMENSIONS = 32  # of a NumPy array in every release
_MOST_BYTES = 2**63 - 1

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

# What a tensor is mapped as. 16-bit floats stay bits: NumPy has no BF16, and a conversion could lose NaN payloads.
_VIEWS: dict[str, str] = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "U16": "<u2", "I16": "<i2",
    "F16": "<u2", "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
    "C64": "<c8",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a container: ``begin`` and ``end`` are byte offsets behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A memory-mapped container, its header checked against the file's size.

    Raises:
        SpeqError: missing, truncated or malformed file, by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size < 8:
                    raise _damaged(path, f"it has {size} bytes")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise SpeqError(f"{path} is missing; copy or download it again") from None
        except OSError as error:
            raise SpeqError(f"cannot read {path}: {error.strerror or error}") from None
        header_bytes = int.from_bytes(self._map[:8], "little")
        if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > size:
            raise _damaged(path, f"its header claims {header_bytes} bytes, the file has {size}")
        self.data_start = 8 + header_bytes
        self.entries, self.metadata = _parse_header(path, self._map[8 : self.data_start])
        _check_layout(path, self.entries, size - self.data_start)

    def array(self, name: str) -> NDArray[Any]:
        """A tensor as a read-only view of the mapping: F16 and BF16 as uint16 bits, F8 as uint8, others as they are."""
        entry = self.entries.get(name)
        if entry is None:
            raise SpeqError(f"{self.path} has no tensor {name}; copy or download it again")
        data = np.frombuffer(
            self._map, dtype=_VIEWS[entry.dtype], count=prod(entry.shape), offset=self.data_start + entry.begin
        )
        return data.reshape(entry.shape)


def _damaged(path: Path, why: str) -> SpeqError:
    if what := describe_file(path, "safetensors"):
        return SpeqError(f"{path} {what}")
    return SpeqError(f"{path} is truncated or not a safetensors file ({why}); copy or download it again")


def _parse_header(path: Path, raw: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {
            str(name): Entry(
                str(item["dtype"]), tuple(_whole(n) for n in item["shape"]), *(_whole(n) for n in item["data_offsets"])
            )
            for name, item in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path, "its header is not valid") from None
    return entries, metadata


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(number)
    return number


def _check_layout(path: Path, entries: dict[str, Entry], data_bytes: int) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.dtype not in ITEM_BYTES:
            raise SpeqError(f"{path}: tensor {name} has the unknown type {entry.dtype}; known: {', '.join(ITEM_BYTES)}")
        item = ITEM_BYTES[entry.dtype]
        if (
            len(entry.shape) > _MOST_DIMENSIONS
            or min(entry.shape, default=0) < 0
            or prod(max(n, 1) for n in entry.shape) * item > _MOST_BYTES  # NumPy's limit, for an empty array as well
            or prod(entry.shape) * item != entry.end - entry.begin
        ):
            raise _damaged(path, f"tensor {name} does not fit its shape")
        if entry.begin != end:
            raise _damaged(path, f"tensor {name} is not where the one before it ends")
        end = entry.end
    if end != data_bytes:
        raise _damaged(path, f"its tensors need {end} bytes, the file holds {data_bytes}")


def encode_header(entries: dict[str, Entry], metadata: dict[str, str], *, total_bytes: int | None = None) -> bytes:
    """The length and JSON header of a container, padded with spaces so that the data starts at a multiple of 64.

    Args:
        entries: tensors with their offsets.
        metadata: free text; Hugging Face libraries ask for ``{"format": "pt"}``.
        total_bytes: size to pad to, for a header that is written after the data it stands before.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
    body = json.dumps(header, separators=(",", ":")).encode()
    needed = -(-(8 + len(body)) // ALIGNMENT) * ALIGNMENT
    size = needed if total_bytes is None else total_bytes
    if size < needed:
        raise ValueError(f"a header of {needed} bytes does not fit into {size}")
    return (size - 8).to_bytes(8, "little") + body.ljust(size - 8)


def write_header(file: BinaryIO, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Write the header for tensors whose dtypes and shapes are known; their bytes are to follow in the same order."""
    entries: dict[str, Entry] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        entries[name] = Entry(dtype, shape, begin, end)
    file.write(encode_header(entries, {"format": "pt"}))
    return entries
