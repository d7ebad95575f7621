"""Encode, decode and draft values: checks the arguments and calls the implementation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.bits import reference
from speq.bits.spec import Spec
from speq.bits.tensor import MAX_COLUMNS, SplitTensor
from speq.errors import SpeqError


def encode(
    bits: NDArray[np.uint16],
    spec: Spec,
    *,
    column_weights: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> SplitTensor:
    """Split a matrix of 16-bit floats into draft codes, residuals and scales.

    ``decode`` gives the same bits back for every pattern, NaN payloads included.

    Args:
        bits: uint16 [N, K], patterns of ``spec.dtype``; K at most 65536.
        spec: the format.
        column_weights: float32 [K], importance of each column in the search for scales (for example its mean squared
            activation), finite and not negative; all equal by default.
        threads: threads to use; all processors by default. The result does not depend on it.

    Raises:
        SpeqError: the matrix or the column weights have the wrong shape, type or range.
    """
    _check(bits, column_weights)
    return reference.encode(bits, spec, column_weights=column_weights)


def decode(tensor: SplitTensor, *, threads: int | None = None) -> NDArray[np.uint16]:
    """The exact 16-bit patterns of a split matrix: uint16 [N, K]."""
    return reference.decode(tensor)


def draft_values(tensor: SplitTensor, *, threads: int | None = None) -> NDArray[np.float32]:
    """What a draft takes the weights for: ``levels[code] * scale / 64``, float32 [N, K]."""
    return reference.draft_values(tensor)


def _check(bits: NDArray[np.uint16], column_weights: NDArray[np.float32] | None) -> None:
    if bits.ndim != 2 or bits.dtype != np.uint16:
        raise SpeqError(f"a split matrix is made from a uint16 matrix, not from {bits.dtype}{list(bits.shape)}")
    rows, columns = bits.shape
    if rows < 1 or columns < 1:
        raise SpeqError(f"an empty matrix ({rows} x {columns}) cannot be split; store it as it is")
    if columns > MAX_COLUMNS:
        raise SpeqError(f"a matrix with {columns} columns cannot be split (limit {MAX_COLUMNS}); store it as it is")
    if rows * columns >= 1 << 32:
        raise SpeqError(f"a matrix of {rows} x {columns} weights cannot be split (limit 2**32 - 1); store it in parts")
    if column_weights is None:
        return
    if column_weights.shape != (columns,):
        raise SpeqError(f"column weights have shape {list(column_weights.shape)}, not [{columns}]")
    if not (np.isfinite(column_weights).all() and (column_weights >= 0).all()):
        raise SpeqError("column weights must be finite and not negative")
