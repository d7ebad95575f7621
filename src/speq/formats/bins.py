"""Bins: the integers ``T[c]`` at which they begin, and which bin and residual a weight gets.

``T`` must come out the same on every platform and in every kernel, because a weight is rebuilt as ``T[c] +
residual``: it is made of one float32 multiplication, one truncation and integers. Which of the bins that can hold a
weight it gets is the encoder's choice; a decoder does not ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.formats.floats import INFINITY_BITS, MANTISSA_BITS, to_float32, truncate
from speq.formats.spec import Dtype, Spec

OUTLIER_SHARE = 1 << 14
"""At most one weight in so many may lie above the finest exponents of ``e3m0``."""


def nested_bins(spec: Spec, scales: NDArray[np.uint16]) -> NDArray[np.int32]:
    """``T`` of groups with these scales (BF16 bits, any shape): int32 [..., 8]."""
    with np.errstate(over="ignore"):
        edges = np.array(spec.edges, np.float32) * to_float32(scales, "bf16")[..., None]
    return np.maximum(truncate(edges, spec.dtype) - np.array(spec.drops, np.int32), 0)


def largest_bin(
    magnitudes: NDArray[np.int32], bins: NDArray[np.int32], residual_bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Bin, residual and escape mark of magnitudes [...], with bins [..., 8] that broadcast against them.

    The bin is the largest ``c`` with ``T[c] <= m``, else 0: the rule of ``e3m0``. A weight whose residual does not fit
    is an escape and gets bin 0, residual 0.
    """
    chosen = np.zeros(magnitudes.shape, np.uint8)
    start = np.broadcast_to(bins[..., 0], magnitudes.shape)
    for c in range(1, 8):
        reached = bins[..., c] <= magnitudes
        chosen = np.where(reached, np.uint8(c), chosen)
        start = np.where(reached, bins[..., c], start)
    return _finish(chosen, magnitudes - start, residual_bits)


def nearest_bin(
    magnitudes: NDArray[np.int32],
    bins: NDArray[np.int32],
    residual_bits: int,
    targets: NDArray[np.float32],
    values: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Choose, in ``nested``, of the bins that can hold the weight the one whose draft value is nearest to a target.

    ``targets`` [...] and ``values`` [..., 8], the draft value of each bin, are float32; the lowest of equals is taken,
    and the first that can hold it where no distance is a number. A weight that no bin can hold is an escape.
    """
    chosen = np.zeros(magnitudes.shape, np.uint8)
    residuals = np.full(magnitudes.shape, -1)
    best = np.full(magnitudes.shape, np.inf, np.float32)
    for c in range(8):
        residual = magnitudes - bins[..., c]
        distance = np.abs(targets - values[..., c])
        holds = (residual >= 0) & (residual < 1 << residual_bits)
        better = holds & ((distance < best) | (residuals < 0))
        chosen = np.where(better, np.uint8(c), chosen)
        residuals = np.where(better, residual, residuals)
        best = np.where(better, distance, best)
    return _finish(chosen, residuals, residual_bits)


def _finish(
    chosen: NDArray[np.uint8], residuals: NDArray[Any], residual_bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    escapes = (residuals < 0) | (residuals >= 1 << residual_bits)
    return np.where(escapes, np.uint8(0), chosen), np.where(escapes, 0, residuals).astype(np.uint16), escapes


def exponent_table(histogram: NDArray[np.int64], dtype: Dtype) -> NDArray[np.uint16]:
    """``T`` of an ``e3m0`` tensor from the number of its finite, non-zero weights with each biased exponent.

    With ``top`` the finest exponent, codes 7 down to 2 begin at exponents top, top - 1 ... top - 5 and code 7 also
    takes the few outliers above, as many exponents as a 12-bit residual reaches (4 for FP16, 32 for BF16). Codes 1
    and 0 hold what is left. FP16 covers every exponent down to zero, if need be by making the low codes wider; BF16
    keeps code 0 for zero and the smallest numbers and lets code 1 reach 2**-37 below ``top``; what falls between them
    is an escape.
    """
    unit = 1 << MANTISSA_BITS[dtype]
    span = (1 << 12) // unit
    used = np.flatnonzero(histogram)
    largest = int(used[-1]) if len(used) else 0
    above = np.cumsum(histogram[::-1])[::-1]
    top = largest
    while top > max(0, largest - span + 1) and above[top] * OUTLIER_SHARE <= above[0]:
        top -= 1
    code = np.arange(8)
    if dtype == "fp16":
        exponents = np.minimum(span * code, top - 7 + code)
    else:
        exponents = np.where(code >= 2, top - 7 + code, np.where(code == 1, top - 5 - span, 0))
    return (unit * np.maximum(exponents, 0)).astype(np.uint16)


def exponent_histogram(bits: NDArray[np.uint16], dtype: Dtype) -> NDArray[np.int64]:
    """How many finite, non-zero weights have each biased exponent: int64 [256], the upper ones zero for FP16."""
    magnitudes = bits & np.uint16(0x7FFF)
    counted = magnitudes[(magnitudes > 0) & (magnitudes < INFINITY_BITS[dtype])]
    return np.bincount(counted >> MANTISSA_BITS[dtype], minlength=256).astype(np.int64)
