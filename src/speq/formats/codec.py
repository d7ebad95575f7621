"""Encode, decode and draft values: checks the arguments, allocates the planes and calls the native codec.

:mod:`speq.formats.reference` has the same functions in plain NumPy and defines their results.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq import _native
from speq.errors import SpeqError
from speq.formats.bins import exponent_table
from speq.formats.feedback import PASSES, Feedback
from speq.formats.scales import candidates, column_importance
from speq.formats.spec import Spec
from speq.formats.tensor import MAX_COLUMNS, MAX_WEIGHTS, SplitTensor, grid, plane_layout
from speq.processors import default_threads


def encode(
    bits: NDArray[np.uint16],
    spec: Spec,
    *,
    column_weights: NDArray[np.float32] | None = None,
    feedback: Feedback | None = None,
    threads: int | None = None,
) -> SplitTensor:
    """Split a matrix of 16-bit floats into draft codes, residuals and scales.

    ``decode`` gives the same bits back for every pattern, NaN payloads included.

    Args:
        bits: uint16 [N, K], patterns of ``spec.dtype``; K at most 65536.
        spec: the format.
        column_weights: float32 [K], importance of each column in the search for scales (for example its mean squared
            activation), finite and not negative; all equal by default.
        feedback: how much a column's error counts in others of its block, for B blocks of C columns from
            :func:`speq.formats.feedback_of`; B C at least K. Only for ``nested``; none by default.
        threads: threads to use; all processors by default. The result does not depend on it.

    Raises:
        SpeqError: the matrix, the column weights or the feedback have the wrong shape, type or range.
    """
    _check(bits, column_weights, feedback, spec)
    patterns = np.require(bits, np.uint16, ["C", "A"])
    rows, columns = patterns.shape
    planes = {name: np.zeros(size, dtype) for name, (size, dtype) in plane_layout(spec, (rows, columns), 0).items()}
    if spec.format == "e3m0":
        histogram = np.zeros(256, np.int64)
        _native.exponent_histogram(patterns, spec.dtype == "bf16", histogram)
        planes["table"] = exponent_table(histogram, spec.dtype)
    importance = np.zeros(grid(spec, (rows, columns))[2] * spec.group_size, np.float32)
    importance[:columns] = column_importance(column_weights, columns)
    counts = np.zeros(len(planes["escape_rows"]) - 1, np.uint32)
    influence, coupling = _influences(feedback)
    planes["escape_columns"], planes["escape_values"] = _native.encode(
        native_format(spec),
        patterns=patterns,
        importance=importance,
        candidates=candidates(spec),
        influence=influence,
        coupling=coupling,
        passes=PASSES,
        **{name: planes[name] for name in ("codes", "residual", "scales", "table")},
        escape_counts=counts,
        threads=_threads(threads),
    )
    np.cumsum(counts, out=planes["escape_rows"][1:])
    return SplitTensor.from_planes(spec, (rows, columns), planes)


def decode(tensor: SplitTensor, *, threads: int | None = None) -> NDArray[np.uint16]:
    """The exact 16-bit patterns of a split matrix: uint16 [N, K]."""
    out = np.empty(tensor.shape, np.uint16)
    _native.decode(native_format(tensor.spec), **tensor.planes(), out=out, threads=_threads(threads))
    return out


def draft_values(tensor: SplitTensor, *, threads: int | None = None) -> NDArray[np.float32]:
    """What a draft takes the weights for: ``levels[code] * scale / 64``, float32 [N, K]."""
    out = np.empty(tensor.shape, np.float32)
    _native.draft_values(
        native_format(tensor.spec), codes=tensor.codes, scales=tensor.scales, out=out, threads=_threads(threads)
    )
    return out


def native_format(spec: Spec) -> _native.SplitFormat:
    """A format as native code takes it, for the codec as for the kernels."""
    return _native.SplitFormat(
        dtype=spec.dtype,
        table_per_group=spec.format == "nested",
        residual_bits=spec.residual_bits,
        group_size=spec.group_size,
        edges=np.array(spec.edges, np.float32),
        drops=np.array(spec.drops, np.uint16),
        levels=np.array(spec.levels, np.int8),
    )


def _influences(feedback: Feedback | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if feedback is None:
        return np.zeros((0, 0, 0), np.float32), np.zeros((0, 0, 0), np.float32)
    return np.require(feedback.influence, np.float32, ["C", "A"]), np.require(feedback.coupling, np.float32, ["C", "A"])


def _threads(threads: int | None) -> int:
    if threads is not None:
        return max(1, threads)
    return default_threads()


def _check(
    bits: NDArray[np.uint16],
    column_weights: NDArray[np.float32] | None,
    feedback: Feedback | None,
    spec: Spec,
) -> None:
    if bits.ndim != 2 or bits.dtype != np.uint16:
        raise SpeqError(f"a split matrix is made from a uint16 matrix, not from {bits.dtype}{list(bits.shape)}")
    rows, columns = bits.shape
    if rows < 1 or columns < 1:
        raise SpeqError(f"an empty matrix ({rows} x {columns}) cannot be split; store it as it is")
    if columns > MAX_COLUMNS:
        raise SpeqError(f"a matrix with {columns} columns cannot be split (limit {MAX_COLUMNS}); store it as it is")
    if rows * columns > MAX_WEIGHTS:
        raise SpeqError(f"a matrix of {rows} x {columns} weights cannot be split (limit 2**32 - 1); store it in parts")
    if column_weights is not None:
        _check_column_weights(column_weights, columns)
    if feedback is not None:
        _check_feedback(feedback, columns, spec)


def _check_column_weights(column_weights: NDArray[np.float32], columns: int) -> None:
    if column_weights.shape != (columns,):
        raise SpeqError(f"column weights have shape {list(column_weights.shape)}, not [{columns}]")
    if not (np.isfinite(column_weights).all() and (column_weights >= 0).all()):
        raise SpeqError("column weights must be finite and not negative")


def _check_feedback(feedback: Feedback, columns: int, spec: Spec) -> None:
    if spec.format != "nested":
        raise SpeqError(f"the codes of {spec.format} follow from the weights alone: leave out the feedback")
    for values in (feedback.influence, feedback.coupling):
        blocks, size, other = values.shape if values.ndim == 3 else (0, 0, 0)
        if size != other or blocks * size < columns:
            raise SpeqError(
                f"feedback has shape {list(values.shape)}, which does not cover {columns} columns in blocks"
            )
        if not np.isfinite(values).all():
            raise SpeqError("feedback must be finite")
    if feedback.influence.shape != feedback.coupling.shape:
        raise SpeqError("influence and coupling must have the same blocks")
