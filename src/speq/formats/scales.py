"""The scale of a group: the one whose draft values are nearest to the weights by (weighted) least squares.

The search is part of the format's definition of "the same file from the same weights", so every sum has a fixed
order: 16 running sums over the group, one per column modulo 16, folded in halves. All arithmetic is float32 without
contraction. Weights are first brought near 1 by a power of two, so that nothing overflows and no subnormal number
matters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.formats.bins import largest_bin, nearest_bin, nested_bins
from speq.formats.floats import INFINITY_BITS, from_float32, to_float32
from speq.formats.spec import Spec

TOP_LEVELS = tuple(i / 128 for i in range(100, 142, 3))
"""Values tried for the highest level of a group, as multiples of its largest finite magnitude."""

SMALLEST = np.float32(2.0**-100)
"""Groups with no magnitude of at least this have scale 0; other scales are at least this."""

LARGEST = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]
"""The largest finite BF16 number."""

LANES = 16


def candidates(spec: Spec) -> NDArray[np.float32]:
    """Scales tried for ``nested``, as multiples of the group's largest finite magnitude."""
    top = max(max(abs(level) for level in spec.levels), 1)
    return np.array([64 * multiple / top for multiple in TOP_LEVELS], np.float32)


def column_importance(weights: NDArray[np.float32] | None, columns: int) -> NDArray[np.float32]:
    """Importance of each column for the search: all 1, or ``weights`` divided by the largest of them."""
    if weights is None:
        return np.ones(columns, np.float32)
    values = np.asarray(weights, np.float32)
    largest = values.max()
    return np.divide(values, largest) if largest > 0 else np.ones(columns, np.float32)


def nested_scales(groups: NDArray[np.uint16], importance: NDArray[np.float32], spec: Spec) -> NDArray[np.uint16]:
    """Scales (BF16 bits) [n] of groups of 16-bit patterns [n, g]: the best candidates, the first of equals.

    ``importance``, float32 [n, g], is 0 for padding.
    """
    largest, _, values, counted = _prepare(groups, importance, spec)
    best_cost = np.full(len(groups), np.inf, np.float32)
    best = np.zeros(len(groups), np.uint16)
    for candidate in candidates(spec):
        scales = _rounded(largest, candidate)
        codes, _, escapes, steps = nested_codes(groups, scales, spec)
        error = values - _levels(groups, codes, escapes, spec) * steps[:, None]
        cost = _sum(counted * (error * error))
        better = cost < best_cost
        best_cost, best = np.where(better, cost, best_cost), np.where(better, scales, best)
    return np.where(largest < SMALLEST, np.uint16(0), best)


def nested_codes(
    groups: NDArray[np.uint16], scales: NDArray[np.uint16], spec: Spec
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_], NDArray[np.float32]]:
    """Bins, residuals and escape marks [n, g] of groups with these scales [n], every weight drafted as near as can be.

    Also the value [n] of one level, after the group was brought near 1.
    """
    _, factor, values, _ = _prepare(groups, np.ones(groups.shape, np.float32), spec)
    steps = to_float32(scales, "bf16") * factor * np.float32(1 / 64)
    codes = (groups >> 15 << 3)[..., None] | np.arange(8, dtype=np.uint16)
    drafts = np.array(spec.levels, np.float32)[codes] * steps[:, None, None]
    bins = nested_bins(spec, scales)[:, None, :]
    magnitudes = (groups & 0x7FFF).astype(np.int32)
    return *nearest_bin(magnitudes, bins, spec.residual_bits, values, drafts), steps


def e3m0_scales(
    groups: NDArray[np.uint16], importance: NDArray[np.float32], spec: Spec, table: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Scales (BF16 bits) [n] of groups [n, g] whose codes ``table`` fixes: least squares in closed form."""
    largest, factor, values, counted = _prepare(groups, importance, spec)
    magnitudes = (groups & 0x7FFF).astype(np.int32)
    codes, _, escapes = largest_bin(magnitudes, table.astype(np.int32), spec.residual_bits)
    levels = _levels(groups, codes, escapes, spec)
    agreement, power = _sum(counted * (values * levels)), _sum(counted * (levels * levels))
    usable = (largest >= SMALLEST) & (agreement > 0) & (power > 0)
    ratio = np.divide(agreement, power, where=usable, out=np.zeros_like(agreement))
    with np.errstate(over="ignore"):
        scales = ratio * np.float32(64) / factor
    return np.where(usable, _rounded(scales, np.float32(1)), np.uint16(0))


def _prepare(
    groups: NDArray[np.uint16], importance: NDArray[np.float32], spec: Spec
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Largest finite magnitude [n], the power of two [n] that brings it to [1, 4), scaled values and importance [n, g].

    Padding and numbers that are not finite count as 0 with importance 0.
    """
    finite = (groups & 0x7FFF) < INFINITY_BITS[spec.dtype]
    values = to_float32(np.where(finite, groups, np.uint16(0)), spec.dtype)
    largest = np.abs(values).max(axis=1)
    exponents = np.clip((largest.view(np.uint32) >> 23).astype(np.int32), 27, 253)
    factor = ((254 - exponents) << 23).astype(np.uint32).view(np.float32)
    return largest, factor, values * factor[:, None], np.where(finite, importance, np.float32(0))


def _levels(
    groups: NDArray[np.uint16], codes: NDArray[np.uint8], escapes: NDArray[np.bool_], spec: Spec
) -> NDArray[np.float32]:
    signs = np.where(escapes, 0, groups >> 15 << 3)
    levels: NDArray[np.float32] = np.array(spec.levels, np.float32)[codes | signs]
    return levels


def _rounded(x: NDArray[np.float32], multiple: np.float32) -> NDArray[np.uint16]:
    """``x * multiple`` within the scales' range, as BF16 bits."""
    with np.errstate(over="ignore"):
        return from_float32(np.clip(x * multiple, SMALLEST, LARGEST), "bf16")


def _sum(terms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of [n, g] over the group, in the defined order."""
    total = np.zeros((len(terms), LANES), np.float32)
    for start in range(0, terms.shape[1], LANES):
        total = total + terms[:, start : start + LANES]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[:, 0]
