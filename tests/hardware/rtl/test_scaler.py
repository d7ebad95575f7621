"""The scaler's multiply-add: the golden model against fractions, the RTL against the golden model."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from speq.hardware.array_parameters import SCALER_LATENCY
from speq.hardware.golden.scaler import NAN, multiply_add
from speq.hardware.rtl.scaler import Scaler

NUMBERS = [0x00000000, 0x80000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0xBF800000, 0x3F800001, 0x7F7FFFFF]
SPECIAL = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000]
SCALES = [0x0000, 0x8000, 0x0001, 0x0080, 0x3F80, 0xBF80, 0x4280, 0x7F7F, 0x7F80, 0xFF80, 0x7F81]


def random_operands(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands of any kind, most of them with exponents close enough to interact, many with equal magnitudes."""
    rng = np.random.default_rng(seed)
    sums = rng.integers(0, 1 << 32, count, np.uint32)
    scales = rng.integers(0, 1 << 16, count, np.uint16)
    addends = rng.integers(0, 1 << 32, count, np.uint32)
    sums = np.where(rng.random(count) < 0.2, sums & np.uint32(0xFF800000), sums)
    scales = np.where(rng.random(count) < 0.3, scales & np.uint16(0xFF80), scales)
    addends = np.where(rng.random(count) < 0.2, addends & np.uint32(0xFF800000), addends)
    product = (sums >> 23 & 255).astype(int) + (scales >> 7 & 255).astype(int) - 127
    near = np.clip(product + rng.integers(-40, 41, count), 0, 254).astype(np.uint32)
    addends = np.where(rng.random(count) < 0.8, addends & np.uint32(0x807FFFFF) | near << np.uint32(23), addends)
    return sums, scales, addends


def corners() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = np.meshgrid(NUMBERS + SPECIAL, SCALES, NUMBERS + SPECIAL)
    return tuple(
        part.ravel().astype(dtype) for part, dtype in zip(grid, (np.uint32, np.uint16, np.uint32), strict=True)
    )


def exact(bits: int) -> Fraction:
    field, fraction = bits >> 23 & 255, bits & 0x7FFFFF
    magnitude = Fraction(fraction + (1 << 23 if field else 0)) * Fraction(2) ** (max(field, 1) - 150)
    return -magnitude if bits >> 31 else magnitude


def rounded(value: Fraction) -> int:
    """FP32 bits of a number that is not zero, by the definition of rounding to nearest even."""
    magnitude, exponent = abs(value), -149
    while magnitude >= Fraction(2) ** (exponent + 24):
        exponent += 1
    units = round(magnitude / Fraction(2) ** exponent)  # Python rounds halves to even
    if units >= 1 << 24:
        units, exponent = units >> 1, exponent + 1
    bits = units + (exponent + 149 << 23) if units >= 1 << 23 else units
    return min(bits, 0x7F800000) | (value < 0) << 31


@pytest.mark.parametrize("operands", [corners(), random_operands(2500, 0)], ids=["corners", "random"])
def test_golden_rounds_the_exact_value_once(operands):
    results = multiply_add(*operands)
    checked = 0
    for a, scale, c, result in zip(*(part.tolist() for part in (*operands, results)), strict=True):
        if 255 in (a >> 23 & 255, scale >> 7 & 255, c >> 23 & 255):
            continue
        product = exact(a) * exact(scale << 16)
        if not (a >> 23 & 255 and scale >> 7 & 255):
            product = Fraction(0)  # subnormal sums and scales count as zero
        total = product + exact(c)
        if total:
            assert result == rounded(total), f"{a:08x} * {scale:04x} + {c:08x}"
        else:
            negative = product == 0 and exact(c) == 0 and (a >> 31 ^ scale >> 15) and c >> 31
            assert result == (0x80000000 if negative else 0)
        checked += 1
    assert checked > 600


def test_golden_follows_ieee_for_infinities_and_nans():
    a, scale, c = corners()
    special = (a >> 23 & 255 == 255) | (scale >> 7 & 255 == 255) | (c >> 23 & 255 == 255)
    a, scale, c = a[special], scale[special], c[special]
    with np.errstate(all="ignore"):
        flushed_a = np.where(a >> 23 & 255, a, a & 0x80000000).astype(np.uint32).view(np.float32)
        flushed_scale = np.where(scale >> 7 & 255, scale, scale & 0x8000).astype(np.uint32) << np.uint32(16)
        expected = flushed_a.astype(float) * flushed_scale.view(np.float32) + c.view(np.float32)
    result = multiply_add(a, scale, c)
    assert (result[np.isnan(expected)] == NAN).all()
    infinite = ~np.isnan(expected)
    assert np.isinf(expected[infinite]).all()
    assert np.array_equal(result[infinite].view(np.float32), expected[infinite].astype(np.float32))


def simulate(sums: np.ndarray, scales: np.ndarray, addends: np.ndarray, draft: np.ndarray) -> list[int]:
    """One operation per cycle through the RTL."""
    from amaranth.sim import Simulator

    scaler = Scaler()
    results: list[int] = []

    async def bench(context):
        count = len(sums)
        for index in range(count + SCALER_LATENCY):
            if index < count:
                context.set(scaler.sum.as_value(), int(sums[index]))
                context.set(scaler.scale.as_value(), int(scales[index]))
                context.set(scaler.draft, int(draft[index]))
            if 0 < index <= count:
                context.set(scaler.addend.as_value(), int(addends[index - 1]))
            if index >= SCALER_LATENCY:
                results.append(context.get(scaler.result))
            await context.tick()

    simulator = Simulator(scaler)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return results


@pytest.mark.parametrize(
    "count",
    [1500, pytest.param(30000, marks=pytest.mark.slow)],
)
def test_rtl_equals_golden(count):
    operands = [np.concatenate(parts) for parts in zip(corners(), random_operands(count, 1), strict=True)]
    draft = np.random.default_rng(2).random(len(operands[0])) < 0.9
    expected = np.where(draft, multiply_add(*operands), operands[0])
    assert simulate(*operands, draft) == expected.tolist()
