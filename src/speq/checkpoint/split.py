"""The first half of a conversion: every weight matrix is split into draft codes and residuals, everything else is kept
as it is. One tensor is in memory at a time.
"""

from __future__ import annotations

from speq.bits import Spec, encode
from speq.bits.spec import Dtype
from speq.bits.tensor import grid
from speq.checkpoint.job import Options
from speq.checkpoint.layout import Record, stored_planes
from speq.checkpoint.rounding import STORED, count_not_finite, read_matrix, rounding_notes, target_dtype
from speq.checkpoint.source import Source, TensorInfo
from speq.checkpoint.storage import Progress
from speq.checkpoint.writer import WeightsWriter


def split_tensors(
    source: Source, options: Options, writer: WeightsWriter, progress: Progress | None, threads: int
) -> list[str]:
    """Split or copy every tensor that is not there yet; returns what there is to note."""
    specs = options.specs()
    dtype_of = {
        info.name: target_dtype(info, source.tensors, options.dtype) for info in source.tensors if info.is_matrix
    }
    done, total = 0, sum(info.size for info in source.tensors)
    for info in source.tensors:
        if progress is not None:
            progress("converting", done, total)
        if info.name not in writer.records:
            if info.is_matrix:
                _add_matrix(source, info, specs, dtype_of[info.name], writer, threads)
            else:
                _add_whole(source, info, writer)
        done += info.size
    if progress is not None:
        progress("converting", total, total)
    unusual = [
        f"{record.name} has {record.not_finite} weights that are NaN or infinite, kept exactly"
        for record in writer.records.values()
        if record.not_finite
    ]
    return source.notes + rounding_notes(source, dtype_of) + unusual


def _add_matrix(
    source: Source, info: TensorInfo, specs: tuple[Spec, ...], dtype: Dtype, writer: WeightsWriter, threads: int
) -> None:
    matrix = read_matrix(source, info, dtype, threads)
    index = next(i for i, spec in enumerate(specs) if spec.dtype == dtype)
    tensor = encode(matrix.bits, specs[index], threads=threads)
    record = Record(info.name, info.shape, STORED[dtype], index, not_finite=matrix.not_finite, escapes=tensor.escapes)
    writer.add(record, stored_planes(info.name, tensor))


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
