"""The bit-sharing decoder: code and residual give the exact FP16 weight, the code alone gives a draft level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def decode(codes: NDArray[np.uint8], residuals: NDArray[np.uint16], exponents: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """FP16 patterns of codes (4 bits) and residuals (12 bits) that broadcast; ``exponents`` are the eight of the bins.

    Words that no encoder writes, whose magnitude would not fit, lose what exceeds 15 bits.
    """
    magnitudes = ((exponents[codes & 7].astype(np.int64) << 10) + residuals) & 0x7FFF
    bits: NDArray[np.int64] = magnitudes | (codes.astype(np.int64) & 8) << 12
    return bits.astype(np.uint16)


def draft_levels(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The levels of codes in a draft, in 64ths of the group's scale: 0, or a power of two up to 64, with a sign."""
    c = codes.astype(np.int64) & 7
    magnitudes = np.where(c == 0, 0, 1 << np.maximum(c - 1, 0))
    return np.where(codes & 8, -magnitudes, magnitudes)
