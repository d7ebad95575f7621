"""The layout of a converted checkpoint on disk, shared by the one who writes it and the one who reads it.

    config.json, tokenizer.json, ...   carried along from the source
    speq.json                          format version, specs, source, notes, one record per tensor with checksums
    weights.safetensors                all planes, ``<tensor>.codes`` and so on, and whole tensors that are not matrices

A tensor starts at a multiple of 64 bytes; a ``<tensor>.pad`` fills the gap before the next, as the container allows
none. Codes and residual fill whole multiples of 64 bytes, so that codes, residual and scales are aligned to 64, the
escape lists naturally.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import xxhash
from numpy.typing import NDArray

from speq.bits import SplitTensor
from speq.checkpoint.safetensors import ITEM_BYTES

FORMAT_VERSION = 1
MANIFEST = "speq.json"
WEIGHTS = "weights.safetensors"

_STORED_TYPES = {"uint8": "U8", "uint16": "U16", "uint32": "U32"}


@dataclass(frozen=True)
class Record:
    """What the manifest says of a tensor.

    Attributes:
        name: Hugging Face name.
        shape: rows first.
        dtype: safetensors name of what it restores to.
        spec: index into the manifest's list of specs; None for a tensor that is stored whole.
        bytes: of all its stored arrays.
        not_finite: how many of its values are NaN or infinite.
        escapes: how many weights are in the side list.
        checksums: xxh3-64 of each stored array, by its name in the container, as hex.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: int | None
    bytes: int = 0
    not_finite: int = 0
    escapes: int = 0
    checksums: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"kind": "raw" if self.spec is None else "split"} | asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Record:
        """The record of a JSON form; KeyError, TypeError or ValueError when it is not one."""
        known = {key: value for key, value in data.items() if key != "kind"}
        record = Record(**known | {"shape": tuple(data["shape"])})
        counts = (*record.shape, record.bytes, record.not_finite, record.escapes)
        if not (
            isinstance(record.name, str)
            and all(_is_whole(count) and count >= 0 for count in counts)
            and record.dtype in ITEM_BYTES
            and (record.spec is None or _is_whole(record.spec))
            and all(isinstance(text, str) for pair in record.checksums.items() for text in pair)
        ):
            raise ValueError(data)
        return record


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """A contiguous array's bytes, without a copy."""
    return array.reshape(-1).view("u1").data


def checksum(array: NDArray[Any]) -> str:
    """xxh3-64 of a contiguous array's bytes, as hex."""
    return xxhash.xxh3_64_hexdigest(as_bytes(array))


def stored_planes(name: str, tensor: SplitTensor) -> dict[str, tuple[str, NDArray[Any]]]:
    """A split matrix's arrays by their names in the container, with their safetensors types."""
    return {f"{name}.{key}": (_STORED_TYPES[plane.dtype.name], plane) for key, plane in tensor.planes().items()}
