"""The arithmetic of a processing element: a dot product in a fixed order, one operation per step.

An operation is one product of FP16 numbers (exact mode) or the sum of four products of FP16 activations with the
levels of 4-bit codes (draft mode); it is computed exactly up to the alignment of the four activations, and added to the
running sum. All variants of the PE compute this function; they differ in how.

Exact mode
    The product of the significands, 22 bits, belongs to the exponent ``ea + ew``. Subnormal numbers have exponent 1, as
    in IEEE 754, and are not normalised. A product with a zero is 0 with exponent 0, whatever the other factor was.
Draft mode
    The four significands are shifted right to the largest of the four exponents; bits that fall out are lost, rounding
    towards zero. A zero activation has exponent 0. An activation that is alone, or has the largest exponent, is
    multiplied exactly. Codes 0 and 8 are worth nothing. The sum is to be multiplied by the scale of the weights' group.
Addition
    The summand with the smaller exponent is shifted right to the other one's and rounded; a carry into the mantissa's
    last bit shifts the sum right by one.
Infinities and NaN
    Exact mode follows IEEE 754: infinity times zero and infinity minus infinity are NaN. In draft mode an activation
    that is not finite makes the sum NaN, whatever its code: a draft is a guess, and is given up. Both stay until a new
    sum begins; the mantissa beneath them is that of the same steps with numbers of exponent 31.
Zeros
    A sum of 0 is +0.

A sum depends on nothing but its own operations and their order: not on other sums, nor on the mode of earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.hardware.e3m0 import unpack_draft
from speq.hardware.golden.decoder import draft_levels
from speq.hardware.parameters import (
    DRAFT_EXPONENT,
    EXPONENT_BIAS,
    LARGEST_WIDTH,
    AccumulatorParameters,
    Rounding,
)

POSITIVE_INFINITY, NEGATIVE_INFINITY, NAN = 1, 2, 3
"""What is not finite; both infinities together are NaN, so that flags are merged by OR."""


@dataclass(frozen=True)
class Accumulator:
    """Running sums of any shape: ``mantissa * 2**(exponent - 50 - fraction_bits)``.

    Attributes:
        mantissa: int64, fits the parameters' width.
        exponent: int64, 0 to 127.
        flags: uint8, 0 finite, 1 and 2 the infinities, 3 NaN.
    """

    mantissa: NDArray[np.int64]
    exponent: NDArray[np.int64]
    flags: NDArray[np.uint8]

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = ()) -> Accumulator:
        """Empty sums."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.uint8))


def accumulate(
    state: Accumulator,
    activations: NDArray[np.uint16],
    weights: NDArray[np.uint16],
    draft: NDArray[np.bool_] | bool,
    first: NDArray[np.bool_] | bool,
    parameters: AccumulatorParameters,
) -> Accumulator:
    """One operation on each running sum.

    Args:
        state: sums of shape [...]
        activations: FP16 patterns [..., 4]; exact mode uses element 0.
        weights: [...], the FP16 pattern of a weight, or four codes packed by :func:`speq.hardware.e3m0.pack_draft`.
        draft: [...], the mode of each operation.
        first: [...], begin a new sum with this operation.
        parameters: the format of the sums.
    """
    exact_step = exact_product(activations[..., 0], weights)
    draft_step = draft_products(activations, unpack_draft(weights))
    mantissa, exponent, flags = (np.where(draft, d, e) for d, e in zip(draft_step, exact_step, strict=True))
    start = Accumulator(*(np.where(first, 0, part) for part in (state.mantissa, state.exponent, state.flags)))
    sum_, sum_exponent = _add(start, mantissa << parameters.fraction_bits, exponent, parameters)
    carry = (sum_ < -(1 << parameters.width - 2)) | (sum_ >= 1 << parameters.width - 2)
    sum_, sum_exponent = sum_ >> carry, sum_exponent + carry
    if parameters.normalise:
        sum_, sum_exponent = _normalise(sum_, sum_exponent, parameters)
    return Accumulator(sum_, sum_exponent, start.flags | flags.astype(np.uint8))


def unpack(bits: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Signed significand (11 bits and a sign), exponent and flags of FP16 patterns; zero has exponent 0."""
    wide = bits.astype(np.int64)
    field, fraction, negative = wide >> 10 & 31, wide & 1023, wide >> 15 == 1
    significand = np.where(field > 0, fraction | 1024, fraction)
    exponent = np.where(significand == 0, 0, np.maximum(field, 1))
    flags = np.where(field < 31, 0, np.where(fraction > 0, NAN, np.where(negative, NEGATIVE_INFINITY, 1)))
    return np.where(negative, -significand, significand), exponent, flags.astype(np.uint8)


def exact_product(a: NDArray[np.uint16], w: NDArray[np.uint16]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Mantissa, exponent and flags of the products of FP16 patterns."""
    (ma, ea, fa), (mw, ew, fw) = unpack(a), unpack(w)
    zero = (ma == 0) | (mw == 0)
    not_finite = np.where((a ^ w) >> np.uint16(15) == 1, NEGATIVE_INFINITY, POSITIVE_INFINITY)
    flags = np.where((fa | fw) == 0, 0, np.where(zero | (fa == NAN) | (fw == NAN), NAN, not_finite))
    return ma * mw, np.where(zero, 0, ea + ew), flags


def align(activations: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Four activations [..., 4] on one exponent: signed significands [..., 4], exponent [...], flags [...]."""
    significands, exponents, flags = unpack(activations)
    largest = exponents.max(axis=-1)
    aligned = np.abs(significands) >> (largest[..., None] - exponents)
    not_finite = np.where((flags > 0).any(axis=-1), NAN, 0).astype(np.uint8)
    return np.where(significands < 0, -aligned, aligned), largest, not_finite


def draft_products(
    activations: NDArray[np.uint16], codes: NDArray[np.uint8]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Mantissa, exponent and flags of the sums of four products: activations [..., 4], codes [..., 4]."""
    aligned, exponent, flags = align(activations)
    # In units of 1/128 every level is even. That saves the hardware a decoder: level c is the bit of weight 2**c.
    mantissa = (aligned * (2 * draft_levels(codes))).sum(axis=-1)
    return mantissa, np.where(exponent == 0, 0, exponent + DRAFT_EXPONENT), flags


def to_float32(state: Accumulator, parameters: AccumulatorParameters) -> NDArray[np.uint32]:
    """The sums as FP32 patterns, rounded to nearest even; NaN is 0x7fc00000.

    A sum is a multiple of 2**-112 and below 2**127 for any sum of up to 2**60 operations, so neither subnormal results
    nor overflow occur.
    """
    magnitude = np.abs(state.mantissa)
    length = _bit_length(magnitude)
    surplus = np.maximum(length - 24, 0)
    half = np.where(surplus > 0, (1 << np.maximum(surplus, 1)) >> 1, 0)
    odd = magnitude >> surplus & 1
    rounded = magnitude + np.where(surplus > 0, half - 1 + odd, 0) >> surplus
    significand = rounded << np.maximum(24 - length, 0)
    # Adding the significand with its leading one to the exponent field below it carries when rounding reached 2**24.
    field = state.exponent - EXPONENT_BIAS - parameters.fraction_bits + length - 1 + 127
    finite = np.where(magnitude == 0, 0, (field - 1 << 23) + significand) | np.where(state.mantissa < 0, 1 << 31, 0)
    special = np.array([0, 0x7F800000, 0xFF800000, 0x7FC00000])[state.flags]
    return np.where(state.flags > 0, special, finite).astype(np.uint32)


def _add(
    state: Accumulator, summand: NDArray[np.int64], exponent: NDArray[np.int64], parameters: AccumulatorParameters
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum and exponent before a carry is dealt with."""
    state_is_larger = state.exponent >= exponent
    large = np.where(state_is_larger, state.mantissa, summand)
    small = np.where(state_is_larger, summand, state.mantissa)
    # A shift by the width leaves nothing but the sign, as every longer one does.
    shifted = _shift(small, np.minimum(np.abs(state.exponent - exponent), LARGEST_WIDTH), parameters.rounding)
    return large + shifted, np.maximum(state.exponent, exponent)


def _shift(value: NDArray[np.int64], distance: NDArray[np.int64], rounding: Rounding) -> NDArray[np.int64]:
    """``value / 2**distance`` rounded to an integer."""
    floor = value >> distance
    if rounding == "truncate":
        return floor
    below = np.maximum(distance - 1, 0)
    up = value >> below & ((value & (1 << below) - 1 != 0) | floor) & 1
    return floor + np.where(distance > 0, up, 0)


def _normalise(
    mantissa: NDArray[np.int64], exponent: NDArray[np.int64], parameters: AccumulatorParameters
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Redundant sign bits out, as far as the exponent allows, but for the carry bit; 0 gets exponent 0."""
    magnitude = np.where(mantissa < 0, ~mantissa, mantissa)
    distance = np.minimum(parameters.width - 2 - _bit_length(magnitude), exponent)
    distance = np.where(mantissa == 0, exponent, distance)
    return mantissa << distance, exponent - distance


def _bit_length(magnitude: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of non-negative integers, 0 for 0, without floating point."""
    length, rest = np.zeros_like(magnitude), magnitude
    for step in (32, 16, 8, 4, 2, 1):
        long = rest >> step > 0
        length, rest = length + np.where(long, step, 0), np.where(long, rest >> step, rest)
    return length + rest
