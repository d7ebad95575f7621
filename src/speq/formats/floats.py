"""The two 16-bit floats as integers: conversion to and from float32, and the constants of their layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.formats.spec import Dtype

INFINITY_BITS: dict[Dtype, int] = {"fp16": 0x7C00, "bf16": 0x7F80}
"""Magnitude bits of infinity; larger ones are NaN."""

HALF = np.uint32(16)
"""A typed shift: NumPy 1 widens numbers without dimensions when the other operand is a Python integer."""

MANTISSA_BITS: dict[Dtype, int] = {"fp16": 10, "bf16": 7}


def to_float32(bits: NDArray[np.uint16], dtype: Dtype) -> NDArray[np.float32]:
    """Values of 16-bit patterns, exact; same shape. NaN stays NaN (its payload may change)."""
    if dtype == "bf16":
        return (bits.astype(np.uint32) << HALF).view(np.float32)
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float32)


def from_float32(x: NDArray[np.float32], dtype: Dtype) -> NDArray[np.uint16]:
    """Patterns of float32 values rounded to nearest, ties to even; same shape. NaN stays NaN."""
    values = np.asarray(x, np.float32)
    if dtype == "fp16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16).view(np.uint16)
    wide = values.view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = wide + ((wide >> HALF & np.uint32(1)) + np.uint32(0x7FFF))
    kept = np.where(np.isnan(values), wide | np.uint32(0x00400000), rounded)
    return (kept >> HALF).astype(np.uint16)


def truncate(x: NDArray[np.float32], dtype: Dtype) -> NDArray[np.int32]:
    """Bits of non-negative float32 values rounded towards zero, as int32; same shape.

    FP16 that overflows gives the largest finite number, 0x7bff. ``x`` must be zero or normal: the result then does
    not depend on whether the processor flushes subnormal numbers.
    """
    wide = np.asarray(x, np.float32).view(np.uint32)
    if dtype == "bf16":
        return (wide >> 16).astype(np.int32)
    smallest_normal, overflow = np.uint32(0x38800000), np.uint32(0x47800000)
    subnormal = np.where(wide < smallest_normal, x, np.float32(0)) * np.float32(2.0**24)
    normal = (np.clip(wide, smallest_normal, overflow - np.uint32(1)) - np.uint32(0x38000000)) >> 13
    return np.where(wide < smallest_normal, subnormal.astype(np.int32), normal.astype(np.int32))
