"""FP16 weights in the format ``e3m0``, as the accelerator's memories hold them.

The bins of an FP16 tensor begin at whole exponents, so the table of docs/formats.md shrinks to eight 5-bit numbers. A
weight is a code of 4 bits, ``sign << 3 | c``, and a residual of 12 bits; both planes together are 16 bits, and four
codes are as wide as one weight: a port of 16 bits carries one exact weight or four draft weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError

TOPS = range(31)
"""The finest exponents, as stored, that a tensor of finite FP16 weights can have."""

CODES_PER_WORD = 4


def bin_exponents(top: int) -> NDArray[np.uint8]:
    """The exponents at which the bins begin, uint8 [8], for a tensor whose finest exponent is ``top``.

    ``T[c]`` of docs/formats.md is 1024 times this. Raises SpeqError unless 0 <= top <= 30.
    """
    if top not in TOPS:
        raise SpeqError(f"{top} is not the exponent of a finite FP16 number; the finest exponent is between 0 and 30")
    code = np.arange(8)
    return np.maximum(np.minimum(4 * code, top - 7 + code), 0).astype(np.uint8)


def split(
    bits: NDArray[np.uint16], exponents: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Codes, residuals and escape marks of FP16 patterns; the same shape.

    A weight gets the largest ``c`` with ``T[c] <= m``; one that is more than 4 exponents above the last bin is an
    escape, which the planes cannot hold, and gets code 0 and residual 0.
    """
    magnitudes = (bits & np.uint16(0x7FFF)).astype(np.int32)
    starts = exponents.astype(np.int32) << 10
    c = np.searchsorted(starts, magnitudes, side="right") - 1
    residuals = magnitudes - starts[c]
    escapes = residuals >= 1 << 12
    codes = np.where(escapes, 0, (bits >> np.uint16(15) << np.uint16(3)) | c)
    return codes.astype(np.uint8), np.where(escapes, 0, residuals).astype(np.uint16), escapes


def pack_draft(codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Words of four codes [..., 4] -> uint16 [...]: code ``i`` in bits ``4 i`` to ``4 i + 3``."""
    shifts = 4 * np.arange(CODES_PER_WORD)
    words: NDArray[np.int64] = ((codes & np.uint8(15)).astype(np.int64) << shifts).sum(axis=-1)
    return words.astype(np.uint16)


def unpack_draft(words: NDArray[Any]) -> NDArray[np.uint8]:
    """The inverse of :func:`pack_draft`: uint8 [..., 4]."""
    shifts = 4 * np.arange(CODES_PER_WORD)
    return (words[..., None].astype(np.int64) >> shifts & 15).astype(np.uint8)
