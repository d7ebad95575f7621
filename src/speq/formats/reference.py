"""Encode, decode and draft values in plain NumPy: the definition of what is right.

The native versions behind :mod:`speq.formats` give the same planes byte for byte and the same values bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from speq.formats.bins import exponent_histogram, exponent_table, largest_bin, nested_bins
from speq.formats.feedback import Feedback, codes_with_feedback
from speq.formats.floats import to_float32
from speq.formats.layout import pack, unpack_codes, unpack_residuals
from speq.formats.scales import column_importance, e3m0_scales, nested_codes, nested_scales
from speq.formats.spec import Spec
from speq.formats.tensor import COLUMNS, ROWS, SplitTensor, grid, plane_layout

WEIGHTS_AT_ONCE = 1 << 20


def encode(
    bits: NDArray[np.uint16],
    spec: Spec,
    *,
    column_weights: NDArray[np.float32] | None = None,
    feedback: Feedback | None = None,
) -> SplitTensor:
    """Split a matrix of 16-bit patterns [N, K]; see :func:`speq.formats.encode`."""
    rows, columns = bits.shape
    row_blocks, blocks, groups = grid(spec, (rows, columns))
    table = np.zeros(8, np.uint16)
    if spec.format == "e3m0":
        table = exponent_table(exponent_histogram(bits, spec.dtype), spec.dtype)
    planes = {name: np.zeros(shape, dtype) for name, (shape, dtype) in plane_layout(spec, (rows, columns), 0).items()}
    importance = np.zeros((1, groups * spec.group_size), np.float32)
    importance[0, :columns] = column_importance(column_weights, columns)
    escape_rows = np.zeros(ROWS * row_blocks, np.int64)
    escape_columns, escape_values = [np.empty(0, np.uint16)], [np.empty(0, np.uint16)]
    for start, stop in _row_ranges(rows, columns):
        chunk = np.zeros((-(-(stop - start) // ROWS) * ROWS, groups * spec.group_size), np.uint16)
        chunk[: stop - start, :columns] = bits[start:stop]
        real = np.zeros(chunk.shape, np.bool_)
        real[: stop - start, :columns] = True
        scales = _scales(chunk, real * importance, spec, table)
        bin_index, residuals, escapes = _choose(chunk, columns, scales, spec, table, feedback)
        codes = bin_index | np.where(escapes, 0, chunk >> 15 << 3).astype(np.uint8)
        codes, residuals, escapes = (
            np.where(real, codes, np.uint8(0)),
            np.where(real, residuals, np.uint16(0)),
            escapes & real,
        )
        width = blocks * COLUMNS
        packed = pack(codes[:, :width], residuals[:, :width], spec.dtype, spec.residual_bits)
        first, last = start // ROWS, -(-stop // ROWS)
        planes["codes"][first:last], planes["residual"][first:last] = packed
        planes["scales"][first:last] = scales.reshape(-1, ROWS, groups).transpose(0, 2, 1)
        escape_rows[start : start + len(chunk)] = escapes.sum(axis=1)
        escape_columns.append(np.nonzero(escapes)[1].astype(np.uint16))
        escape_values.append(chunk[escapes])
    planes["escape_rows"] = np.concatenate([[0], np.cumsum(escape_rows)]).astype(np.uint32)
    planes["escape_columns"], planes["escape_values"] = np.concatenate(escape_columns), np.concatenate(escape_values)
    planes["table"] = table
    return SplitTensor.from_planes(spec, (rows, columns), planes)


def decode(tensor: SplitTensor) -> NDArray[np.uint16]:
    """The exact 16-bit patterns of a split matrix: uint16 [N, K]."""
    rows, columns = tensor.shape
    codes = unpack_codes(tensor.codes, tensor.spec.dtype).astype(np.int32)
    residuals = unpack_residuals(tensor.residual, tensor.spec.dtype, tensor.spec.residual_bits)
    if tensor.spec.format == "nested":
        scales = _columnwise(tensor.scales, tensor)
        starts = nested_bins(tensor.spec, scales)
        magnitudes = np.take_along_axis(starts, (codes & 7)[..., None], axis=-1)[..., 0] + residuals
    else:
        magnitudes = tensor.table[codes & 7].astype(np.int32) + residuals
    bits = (magnitudes | codes >> 3 << 15).astype(np.uint16)
    first_escapes = tensor.escape_rows.astype(np.int64)
    row_of_escape = np.repeat(np.arange(len(bits)), first_escapes[1:] - first_escapes[:-1])
    bits[row_of_escape, tensor.escape_columns] = tensor.escape_values
    return np.ascontiguousarray(bits[:rows, :columns])


def draft_values(tensor: SplitTensor) -> NDArray[np.float32]:
    """What a draft takes the weights for: ``levels[code] * scale / 64``, float32 [N, K]."""
    rows, columns = tensor.shape
    levels = np.array(tensor.spec.levels, np.float32)[unpack_codes(tensor.codes, tensor.spec.dtype)]
    steps = to_float32(_columnwise(tensor.scales, tensor), "bf16") * np.float32(1 / 64)
    return np.ascontiguousarray((levels * steps)[:rows, :columns])


def _scales(
    chunk: NDArray[np.uint16], importance: NDArray[np.float32], spec: Spec, table: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Scales [rows, G] of padded rows of patterns."""
    groups, weights = chunk.reshape(-1, spec.group_size), importance.reshape(-1, spec.group_size)
    if spec.format == "nested":
        scales = nested_scales(groups, weights, spec)
    else:
        scales = e3m0_scales(groups, weights, spec, table)
    return scales.reshape(len(chunk), -1)


def _choose(
    chunk: NDArray[np.uint16],
    columns: int,
    scales: NDArray[np.uint16],
    spec: Spec,
    table: NDArray[np.uint16],
    feedback: Feedback | None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Bins, residuals and escape marks of padded rows of patterns with ``columns`` true columns."""
    if feedback is not None:
        padding = ((0, 0), (0, chunk.shape[1] - columns))
        bins, residuals, escapes = codes_with_feedback(chunk[:, :columns], scales, feedback, spec)
        return np.pad(bins, padding), np.pad(residuals, padding), np.pad(escapes, padding)
    if spec.format == "nested":
        bins, residuals, escapes, _ = nested_codes(chunk.reshape(-1, spec.group_size), scales.reshape(-1), spec)
    else:
        magnitudes = (chunk & 0x7FFF).astype(np.int32)
        bins, residuals, escapes = largest_bin(magnitudes, table.astype(np.int32), spec.residual_bits)
    return bins.reshape(chunk.shape), residuals.reshape(chunk.shape), escapes.reshape(chunk.shape)


def _columnwise(scales: NDArray[np.uint16], tensor: SplitTensor) -> NDArray[np.uint16]:
    """The plane ``scales`` repeated to one scale per padded element."""
    rows = scales.transpose(0, 2, 1).reshape(-1, scales.shape[1])
    return np.repeat(rows, tensor.spec.group_size, axis=1)[:, : tensor.codes.shape[1] * COLUMNS]


def _row_ranges(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that start at a row block and hold about ``WEIGHTS_AT_ONCE`` weights."""
    step = max(1, WEIGHTS_AT_ONCE // (ROWS * columns)) * ROWS
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
