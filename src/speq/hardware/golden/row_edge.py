"""What the edge of a row hands to its elements: unpacked, and in a draft aligned, activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.hardware.golden.pe import NAN, align, unpack


def row_operands(
    activations: NDArray[np.uint16],
    enable: NDArray[np.bool_] | bool = True,
    draft: NDArray[np.bool_] | bool = False,
    first: NDArray[np.bool_] | bool = False,
) -> dict[str, NDArray[Any]]:
    """The fields of ``ROW_OPERANDS``, [...] or [..., 4], of operations with activations [..., 4]."""
    enable, draft, first = (np.broadcast_to(flag, activations.shape[:-1]) for flag in (enable, draft, first))
    one, exponent, flags = unpack(activations[..., 0])
    aligned, largest, not_finite = align(activations)
    operands = np.where(draft[..., None], np.abs(aligned), np.abs(one)[..., None])
    signs = np.where(draft[..., None], activations >> np.uint16(15), (activations >> np.uint16(15))[..., :1])
    return {
        "valid": enable,
        "draft": draft,
        "first": first & enable,
        "significands": np.where(enable[..., None], operands, 0),
        "negative": np.where(enable[..., None], signs, 0),
        "exponent": np.where(enable, np.where(draft, largest, exponent), 0),
        "infinite": enable & ~draft & (flags > 0) & (flags != NAN),
        "nan": enable & np.where(draft, not_finite > 0, flags == NAN),
    }


def row_words(fields: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The 58 bits of ``ROW_OPERANDS``, first field lowest, as int64 [...]."""
    words = np.zeros(fields["valid"].shape, np.int64)
    position = 0
    for name, width in (("valid", 1), ("draft", 1), ("first", 1), ("significands", 11), ("negative", 1)):
        parts = fields[name].astype(np.int64)
        for part in np.moveaxis(parts, -1, 0) if parts.ndim > words.ndim else [parts]:
            words |= part << position
            position += width
    for name, width in (("exponent", 5), ("infinite", 1), ("nan", 1)):
        words |= fields[name].astype(np.int64) << position
        position += width
    return words
