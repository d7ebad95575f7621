"""The GGUF container: metadata, by type where that matters, and the mapped bytes of each tensor.

The ``gguf`` package reads these too, in seconds for a large vocabulary and with an unclear failure on a cut-off file;
this reader takes milliseconds and checks every offset. Layout as in the GGUF specification (ggml, ``docs/gguf.md``),
versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.foreign import describe_file
from speq.errors import SpeqError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GGUFTensor:
    """A stored tensor: its type's name, its shape with rows first, its bytes as ``uint8 [rows, bytes per row]``, and
    the byte of the file at which they begin.
    """

    type: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    begin: int


class GGUFFile:
    """A memory-mapped GGUF file: ``metadata`` by key and ``tensors`` by name.

    Raises:
        SpeqError: missing, truncated or malformed file, or a version that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        try:
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise SpeqError(
                        f"{path} {describe_file(path, 'gguf') or 'is not a GGUF file (nor a model directory)'}"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SpeqError(f"cannot read {path}: {error.strerror or error}") from None
        self._at = 4
        try:
            self._parse()
        except (struct.error, IndexError, ValueError, KeyError, OverflowError, RecursionError):
            raise SpeqError(f"{path} is truncated or damaged; copy or download it again") from None

    def _parse(self) -> None:
        version = self._scalar("I")
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped < version and swapped < 1 << 16:
            raise SpeqError(
                f"{self.path} is a big-endian GGUF file (version {swapped}): get the little-endian one, or turn it "
                "round with gguf-convert-endian of the gguf package"
            )
        if version == 1:
            raise SpeqError(f"{self.path} is GGUF version 1, a short-lived one: get the model in version 2 or 3")
        if version not in (2, 3):
            raise SpeqError(f"{self.path} is GGUF version {version}; versions 2 and 3 are supported")
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        for _ in range(key_count):
            key = self._string()
            if key in self.metadata:
                raise SpeqError(f"{self.path} has the metadata key {key} twice; copy or download it again")
            self.metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
            raise ValueError(alignment)
        self.data_start = start = -(-self._at // alignment) * alignment
        end = start
        for name, shape, type_id, offset in sorted(infos, key=lambda info: info[3]):
            if name in self.tensors or start + offset < end:
                raise SpeqError(
                    f"{self.path}: tensor {name} is there twice or overlaps another; copy or download it again"
                )
            self.tensors[name] = self._tensor(name, shape, type_id, start + offset)
            end = start + offset + self.tensors[name].data.nbytes
        self.tensors = {name: self.tensors[name] for name, *_ in infos}

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._scalar("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(name)
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return name, shape[::-1], self._scalar("I"), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], type_id: int, begin: int) -> GGUFTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(type_id)
        except ValueError:
            raise SpeqError(
                f"{self.path}: tensor {name} has the unknown type {type_id}; a newer gguf package may know it"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        row_bytes = shape[-1] // block * block_bytes if shape else 0
        if not shape or shape[-1] % block:
            raise ValueError(name)
        rows = prod(shape[:-1])
        if begin + rows * row_bytes > len(self._map):
            raise SpeqError(
                f"{self.path} is truncated: tensor {name} ends at byte {begin + rows * row_bytes}, the file at "
                f"{len(self._map)}; copy or download it again"
            )
        data = np.frombuffer(self._map, np.uint8, count=rows * row_bytes, offset=begin)
        return GGUFTensor(kind.name, shape, data.reshape(rows, row_bytes), begin)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._map, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        begin = self._at + 8
        (length,) = struct.unpack_from("<Q", self._map, self._at)
        self._at = begin + length
        if self._at > len(self._map):
            raise IndexError
        return self._map[begin : self._at].decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            code = f"<{count}{_SCALARS[item]}"
            values = list(struct.unpack_from(code, self._map, self._at))
            self._at += struct.calcsize(code)
            return values
        return [self._value(item) for _ in range(count)]


class GGUFKeys:
    """The keys that start with the architecture's name, which is left out here. A value of another kind is an
    error that names its key.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.architecture = str(file.metadata.get("general.architecture"))

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._file.metadata

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number.

        Raises:
            SpeqError: the key is missing and has no default, or its value is something else or less than ``least``.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._unfit(key, value, f"a whole number from {least} on")
        return value

    def whole_of_all_layers(self, key: str, layers: int, default: int | None = None) -> int:
        """A whole number that the file may give once or for each of its layers.

        Raises:
            SpeqError: as :meth:`whole`; a list of another length; layers that differ.
        """
        value = self._value(key, default)
        if not isinstance(value, list):
            return self.whole(key, default)
        if len(value) != layers:
            raise self._unfit(key, value, f"one number or {layers}, one a layer")
        if any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in value):
            raise self._unfit(key, value, "whole numbers from 1 on")
        if len(set(value)) > 1:
            raise SpeqError(f"{self._file.path}: {self.architecture}.{key} differs per layer, which is not supported")
        return int(value[0])

    def number(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number, a float32 as the shortest decimal that it stands for: 1e-05, not 9.999999747378752e-06.

        Raises:
            SpeqError: as :meth:`whole`.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
            raise self._unfit(key, value, f"a number from {least:g} on")
        return shortest(value) if isinstance(value, float) else value

    def text(self, key: str, default: str) -> str:
        """A string.

        Raises:
            SpeqError: the value is something else.
        """
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._unfit(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            SpeqError: the value is something else.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._unfit(key, value, "true or false")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self._file.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise SpeqError(f"{self._file.path} lacks the metadata key {self.architecture}.{key}; convert it again")
        return value

    def _unfit(self, key: str, value: Any, wanted: str) -> SpeqError:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return SpeqError(f"{self._file.path}: {self.architecture}.{key} is {shown}, must be {wanted}")


def shortest(value: float) -> float:
    """The shortest decimal of a float32, as the original config has it."""
    return float(str(np.float32(value)))
