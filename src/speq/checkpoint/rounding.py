"""From a source's tensors to the 16-bit matrices that are split: dequantised and rounded where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.bits import from_float32, to_float32
from speq.bits.spec import Dtype
from speq.checkpoint.source import SIXTEEN_BIT, Source, TensorInfo
from speq.errors import SpeqError
from speq.processors import map_in_threads

DTYPES: dict[str, Dtype] = {"F16": "fp16", "BF16": "bf16"}
STORED = {"fp16": "F16", "bf16": "BF16"}
_INFINITY = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}
_CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of 16-bit patterns, ``uint16 [rows, columns]``, and how many of them are NaN or infinite."""

    bits: NDArray[np.uint16]
    dtype: Dtype
    not_finite: int


def target_dtype(info: TensorInfo, infos: list[TensorInfo], asked: Dtype | None) -> Dtype:
    """The 16-bit type of a matrix: as asked, or its own, or that of most 16-bit weights around it, or BF16."""
    if asked is not None:
        return asked
    if info.dtype in SIXTEEN_BIT:
        return DTYPES[info.dtype]
    sizes = {
        kind: sum(other.size for other in infos if other.is_matrix and other.dtype == kind) for kind in SIXTEEN_BIT
    }
    return "fp16" if sizes["F16"] > sizes["BF16"] else "bf16"


def read_matrix(source: Source, info: TensorInfo, dtype: Dtype, threads: int, start: int, stop: int) -> Matrix:
    """Read rows of a matrix as 16-bit patterns; weights that are 16-bit floats of that type already come as they are,
    without a copy.

    Raises:
        SpeqError: a finite weight is beyond the range of ``dtype``.
    """
    rows, columns = stop - start, info.shape[1]
    if DTYPES.get(info.dtype) == dtype:
        bits: NDArray[np.uint16] = source.read(info.name, start, stop)
        return Matrix(
            bits, dtype, sum(count_not_finite(bits[part], STORED[dtype]) for part in _row_ranges(rows, columns))
        )
    bits = np.empty((rows, columns), np.uint16)

    def convert(part: slice) -> int:
        values = source.read(info.name, start + part.start, start + part.stop)
        values = (
            to_float32(values, DTYPES[info.dtype]) if info.dtype in DTYPES else values.astype(np.float32, copy=False)
        )
        bits[part] = from_float32(values, dtype)
        found = count_not_finite(bits[part], STORED[dtype])
        if found and found != np.count_nonzero(~np.isfinite(values)):
            raise SpeqError(f"tensor {info.name} has weights beyond the range of {dtype}; convert with --dtype bf16")
        return found

    return Matrix(bits, dtype, sum(map_in_threads(convert, _row_ranges(rows, columns), threads)))


def rounding_notes(source: Source, dtype_of: dict[str, Dtype]) -> list[str]:
    """One line for each kind of unquantised weights that are rounded to another type."""
    rounded = {
        (info.dtype, STORED[dtype_of[info.name]])
        for info in source.tensors
        if info.is_matrix and not info.quantised and info.dtype != STORED[dtype_of[info.name]]
    }
    return [
        f"{old} weights are rounded to {new}: exactness is with respect to the rounded weights"
        for old, new in sorted(rounded)
    ]


def _row_ranges(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def count_not_finite(values: NDArray[Any], dtype: str) -> int:
    """How many values are NaN or infinite; ``dtype`` is their safetensors name, F16 and BF16 come as bits."""
    if dtype not in SIXTEEN_BIT:
        return int(np.count_nonzero(~np.isfinite(values))) if values.dtype.kind == "f" else 0
    magnitudes = values & np.uint16(0x7FFF)
    return int(np.count_nonzero(magnitudes >= _INFINITY[dtype])) if magnitudes.max(initial=0) >= _INFINITY[dtype] else 0
