"""Conversions of the two 16-bit floats, against Python's own arithmetic."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest

from speq.formats import from_float32, to_float32
from speq.formats.floats import truncate

EVERY = np.arange(65536, dtype=np.uint16)


def exact(bits: int, dtype: str) -> float:
    if dtype == "fp16":
        return struct.unpack("<e", struct.pack("<H", bits))[0]
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_pattern_widens_exactly_and_comes_back(dtype):
    wide = to_float32(EVERY, dtype)
    truth = np.array([exact(int(bits), dtype) for bits in EVERY], np.float32)
    numbers = ~np.isnan(truth)
    assert np.array_equal(wide[numbers].view(np.uint32), truth[numbers].view(np.uint32))
    assert np.isnan(wide[~numbers]).all()
    back = from_float32(wide, dtype)
    assert np.array_equal(back[numbers], EVERY[numbers])
    assert np.isnan(to_float32(back[~numbers], dtype)).all()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounds_to_nearest_even_and_truncates_towards_zero(dtype):
    infinity = 0x7C00 if dtype == "fp16" else 0x7F80
    lower = np.random.default_rng(0).integers(0, infinity - 1, 4000)
    for bits in np.concatenate([lower, [0, 1, infinity - 2]]):
        a, b = Fraction(exact(int(bits), dtype)), Fraction(exact(int(bits) + 1, dtype))
        for share in (Fraction(1, 4), Fraction(1, 2), Fraction(5, 8)):
            x = np.float32(float(a + (b - a) * share))
            assert Fraction(float(x)) == a + (b - a) * share
            up = share > Fraction(1, 2) or (share == Fraction(1, 2) and bits % 2 == 1)
            assert from_float32(np.array([x, -x]), dtype).tolist() == [bits + up, (bits + up) | 0x8000]
            if x == 0 or x >= 2.0**-126:
                assert truncate(np.array([x]), dtype)[0] == bits


def test_too_large():
    huge = np.array([65520, 1e9, np.inf], np.float32)
    assert from_float32(huge, "fp16").tolist() == [0x7C00] * 3
    assert truncate(huge, "fp16").tolist() == [0x7BFF] * 3
    assert from_float32(np.array([3.4028e38], np.float32), "bf16").tolist() == [0x7F80]
    assert truncate(np.array([3.4028e38, np.inf], np.float32), "bf16").tolist() == [0x7F7F, 0x7F80]


def test_nan_with_low_payload_stays_nan():
    nan = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    for dtype in ("fp16", "bf16"):
        assert np.isnan(to_float32(from_float32(nan, dtype), dtype)).all()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 5, 6)])
def test_shapes_are_kept(dtype, shape):
    assert from_float32(np.ones(shape, np.float32).T, dtype).shape == shape[::-1]
    assert to_float32(np.zeros(shape, np.uint16), dtype).shape == shape
