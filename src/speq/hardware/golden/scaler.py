"""The multiply-add that applies a group's scale: FP32 sum times BF16 scale plus FP32 partial result, rounded once.

Integers only, and the same steps as the RTL. The three numbers meet in a frame of 61 bits. The product has 32 bits and
lies at bits 1 to 32; the addend lies where its exponent puts it, but not above bit 35, from where it cannot reach the
product any more: then what is left of the product only decides how the result rounds. Bit 0 collects what falls off
below. Sums and scales are normal numbers (the least product of an FP16 activation and a draft level is 2**-30, scales
are 0 or at least 2**-100), so subnormal ones count as zero; partial results may be subnormal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NAN = 0x7FC00000
"""The one NaN that the scaler returns."""


def multiply_add(
    sums: NDArray[np.uint32], scales: NDArray[np.uint16], addends: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """``sum * scale + addend`` with one rounding to nearest even: FP32, BF16 and FP32 bits in, FP32 bits out.

    Shapes broadcast. Infinities and NaNs follow IEEE 754; every NaN that comes out is the same one.
    """
    sum_bits, scale_bits, addend_bits = (
        np.asarray(values).astype(np.int64) for values in np.broadcast_arrays(sums, scales, addends)
    )
    sum_exponent, sum_mantissa = _normal(sum_bits, 23)
    scale_exponent, scale_mantissa = _normal(scale_bits, 7)
    exponent = addend_bits >> 23 & 0xFF
    addend_exponent = np.maximum(exponent, 1)
    addend_mantissa = (addend_bits & 0x7FFFFF) | np.where(exponent > 0, 1 << 23, 0)
    product_sign = (sum_bits >> 31) ^ (scale_bits >> 15)
    addend_sign = addend_bits >> 31

    nothing = (sum_mantissa == 0) | (scale_mantissa == 0)
    position = np.where(nothing, 35, np.minimum(addend_exponent - sum_exponent - scale_exponent + 135, 35))
    far = np.maximum(-position, 0)
    shifted = np.where(
        position >= 0, addend_mantissa << np.maximum(position, 0), addend_mantissa >> np.minimum(far, 25)
    )
    lost = (shifted & 0) | ((addend_mantissa & ((1 << np.minimum(far, 25)) - 1)) != 0)
    addend = shifted | lost
    product = (sum_mantissa * scale_mantissa) << 1

    opposite = product_sign != addend_sign
    total = np.where(opposite, addend - product, addend + product)
    sign = np.where(total == 0, product_sign & addend_sign, addend_sign ^ (opposite & (total < 0)))
    # The exponent field that a number would have if its leading one were at bit 60 of the frame.
    exponent_at_top = addend_exponent - position + 37
    result = _round(np.abs(total), exponent_at_top) | sign << 31

    special = _special(sum_bits, scale_bits, addend_bits, product_sign)
    return np.where(special >= 0, special, result).astype(np.uint32)


def _normal(bits: NDArray[np.int64], fraction: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Exponent field and mantissa with its leading one; zero for subnormal numbers."""
    exponent = bits >> fraction & 0xFF
    mantissa = np.where(exponent > 0, bits & ((1 << fraction) - 1) | 1 << fraction, 0)
    return exponent, mantissa


def _round(total: NDArray[np.int64], exponent_at_top: NDArray[np.int64]) -> NDArray[np.int64]:
    """FP32 magnitude bits of a 61-bit number, to nearest even; subnormal or infinite where need be."""
    leading = np.zeros_like(total)
    rest = total
    for width in (32, 16, 8, 4, 2, 1):
        high = rest >> width > 0
        leading, rest = leading + high * width, np.where(high, rest >> width, rest)
    shift = np.minimum(60 - leading, exponent_at_top - 1)
    normalised = total << shift
    mantissa = normalised >> 37
    odd, guard, below = mantissa & 1, normalised >> 36 & 1, (normalised & ((1 << 36) - 1)) != 0
    magnitude = ((exponent_at_top - shift - 1) << 23) + mantissa + (guard & (odd | below))
    return np.where(total == 0, 0, np.minimum(magnitude, 0x7F800000))


def _special(
    sum_bits: NDArray[np.int64],
    scale_bits: NDArray[np.int64],
    addend_bits: NDArray[np.int64],
    product_sign: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Bits of the result where an operand is infinite or NaN, -1 elsewhere."""
    sum_kind, scale_kind, addend_kind = (
        (bits & (1 << width - 1) - 1) - (0xFF << fraction)  # 0: infinite, above 0: NaN
        for bits, width, fraction in ((sum_bits, 32, 23), (scale_bits, 16, 7), (addend_bits, 32, 23))
    )
    sum_zero, scale_zero = sum_bits >> 23 & 0xFF == 0, scale_bits >> 7 & 0xFF == 0
    infinite_product = (sum_kind == 0) | (scale_kind == 0)
    invalid = (
        (sum_kind > 0)
        | (scale_kind > 0)
        | (addend_kind > 0)
        | ((sum_kind == 0) & scale_zero)
        | ((scale_kind == 0) & sum_zero)
        | (infinite_product & (addend_kind == 0) & (product_sign != addend_bits >> 31))
    )
    infinity = np.where(infinite_product, product_sign, addend_bits >> 31) << 31 | 0x7F800000
    result = np.where(infinite_product | (addend_kind == 0), infinity, -1)
    return np.where(invalid, NAN, result)
