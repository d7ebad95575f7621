"""The first half of a conversion: every weight matrix is split into draft codes and residuals, everything else is kept
as it is. Weights that are not 16-bit floats yet are rounded on the way. One tensor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.sources.source import SIXTEEN_BIT, Source, TensorInfo
from speq.checkpoint.storage import Progress
from speq.checkpoint.store import DTYPES, STORED, Record, stored_planes
from speq.checkpoint.writer import WeightsWriter
from speq.conversion.job import Options
from speq.conversion.kept import Kept, in_ranges
from speq.errors import SpeqError
from speq.formats import Spec, SplitTensor, encode, from_float32, to_float32
from speq.formats.spec import Dtype
from speq.formats.tensor import grid
from speq.processors import map_in_threads

_INFINITY = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}
_ROUNDED_WEIGHTS = 1 << 21
_CHUNK_WEIGHTS = 1 << 22  # for each thread: a fraction of a second
_PIECE_ROWS = 64


def split_tensors(
    source: Source, options: Options, writer: WeightsWriter, kept: Kept, progress: Progress | None, threads: int
) -> None:
    """Split or copy every tensor that is not there yet."""
    specs, dtype_of = options.specs(), _dtypes(source, options)
    done, total = 0, sum(info.size for info in source.tensors)
    for info in source.tensors:
        if progress is not None:
            progress("converting", done, total)
        if info.name not in writer.records:
            if info.is_matrix:
                _add_matrix(source, info, specs, dtype_of[info.name], writer, kept, threads)
            else:
                _add_whole(source, info, writer)
        done += info.size
    if progress is not None:
        progress("converting", total, total)


def split_notes(source: Source, options: Options, records: list[Record]) -> list[str]:
    """What there is to note of the tensors that ``records`` tells of."""
    unusual = [
        f"{record.name} has {record.not_finite} weights that are NaN or infinite, kept exactly"
        for record in records
        if record.not_finite
    ]
    return source.notes + rounding_notes(source, _dtypes(source, options)) + unusual


def _dtypes(source: Source, options: Options) -> dict[str, Dtype]:
    """The 16-bit type of every matrix."""
    return {info.name: target_dtype(info, source.tensors, options.dtype) for info in source.tensors if info.is_matrix}


def _add_matrix(
    source: Source,
    info: TensorInfo,
    specs: tuple[Spec, ...],
    dtype: Dtype,
    writer: WeightsWriter,
    kept: Kept,
    threads: int,
) -> None:
    rows, columns = info.shape
    index = next(i for i, spec in enumerate(specs) if spec.dtype == dtype)
    spec = specs[index]
    whole = spec.format == "e3m0"  # its table is made of all exponents of the matrix

    def work(start: int, stop: int) -> dict[str, NDArray[Any]]:
        matrix = read_matrix(source, info, dtype, threads, start, stop)
        arrays = {"bits": matrix.bits} if whole else encode(matrix.bits, spec, threads=threads).planes()
        return arrays | {"not_finite": np.array(matrix.not_finite)}

    at_once = rows if whole and DTYPES.get(info.dtype) == dtype else rows_at_once(columns, _CHUNK_WEIGHTS, threads)
    parts = in_ranges(kept, info.name, rows, at_once, work)
    if whole:
        bits = parts[0]["bits"] if len(parts) == 1 else np.concatenate([part["bits"] for part in parts])
        tensor = encode(bits, spec, threads=threads)
    else:
        tensor = SplitTensor.of_rows(spec, (rows, columns), parts)
    not_finite = sum(int(part["not_finite"]) for part in parts)
    record = Record(info.name, info.shape, STORED[dtype], index, not_finite=not_finite, escapes=tensor.escapes)
    writer.add(record, stored_planes(info.name, tensor))
    kept.drop(info.name)


def rows_at_once(columns: int, weights: int, threads: int) -> int:
    """Rows of so many weights for each thread, in whole pieces of the encoder."""
    return max(1, weights * threads // (columns * _PIECE_ROWS)) * _PIECE_ROWS


def _add_whole(source: Source, info: TensorInfo, writer: WeightsWriter) -> None:
    array = source.read(info.name)
    dtype = "F32" if info.quantised else info.dtype
    writer.add(
        Record(info.name, info.shape, dtype, None, not_finite=count_not_finite(array, dtype)),
        {info.name: (dtype, array)},
    )


def estimate(source: Source, options: Options) -> int:
    """Bytes that the result will take, a little more than likely."""
    spec = max(options.specs(), key=lambda spec: spec.residual_bits)
    total = 1 << 20
    for info in source.tensors:
        if info.is_matrix:
            row_blocks, blocks, groups = grid(spec, (info.shape[0], info.shape[1]))
            total += row_blocks * (blocks * (128 + 32 * spec.residual_bits) + 8 * groups) + info.size // 16
        else:
            total += info.size * 8
    return total


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
    step = max(1, _ROUNDED_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def count_not_finite(values: NDArray[Any], dtype: str) -> int:
    """How many values are NaN or infinite; ``dtype`` is their safetensors name, F16 and BF16 come as bits."""
    if dtype not in SIXTEEN_BIT:
        return int(np.count_nonzero(~np.isfinite(values))) if values.dtype.kind == "f" else 0
    magnitudes = values & np.uint16(0x7FFF)
    return int(np.count_nonzero(magnitudes >= _INFINITY[dtype])) if magnitudes.max(initial=0) >= _INFINITY[dtype] else 0
