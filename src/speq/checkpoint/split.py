"""The first half of a conversion: every weight matrix is split into draft codes and residuals, everything else is kept
as it is. One tensor is in memory at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.bits import Spec, SplitTensor, encode
from speq.bits.spec import Dtype
from speq.bits.tensor import grid
from speq.checkpoint.job import Options
from speq.checkpoint.kept import Kept, in_ranges
from speq.checkpoint.layout import Record, stored_planes
from speq.checkpoint.rounding import DTYPES, STORED, count_not_finite, read_matrix, rounding_notes, target_dtype
from speq.checkpoint.source import Source, TensorInfo
from speq.checkpoint.storage import Progress
from speq.checkpoint.writer import WeightsWriter

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
