"""The golden processing element against IEEE arithmetic of NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from speq.formats import Spec
from speq.hardware.e3m0 import pack_draft
from speq.hardware.golden.pe import NAN, Accumulator, accumulate, to_float32
from speq.hardware.parameters import AccumulatorParameters

DEFAULT = AccumulatorParameters()
LEVELS = np.array(Spec.default("e3m0", "fp16", 64).levels) / 64
EVERY = np.arange(65536, dtype=np.uint16)
CORNERS = np.array(
    [
        0,
        1,
        2,
        0x3FF,
        0x400,
        0x401,
        0x7FF,
        0x3BFF,
        0x3C00,
        0x3C01,
        0x3FFF,
        0x7BFF,
        0x7C00,
        0x7C01,
        0x7FFF,
    ],
    np.uint16,
)
CORNERS = np.concatenate([CORNERS, CORNERS | 0x8000])


def one_step(activations, weights, draft, parameters=DEFAULT):
    return accumulate(Accumulator.zeros(weights.shape), activations, weights, draft, True, parameters)


def lanes(activation, lane=0):
    four = np.zeros((*activation.shape, 4), np.uint16)
    four[..., lane] = activation
    return four


def as_float(bits):
    return bits.view(np.float16).astype(np.float64)


def assert_is(state, expected, parameters=DEFAULT):
    """The sums are these float64 numbers, rounded once to float32; NaN is NaN, zero is +0."""
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = (expected.astype(np.float32) + np.float32(0)).view(np.uint32)
    got = to_float32(state, parameters)
    assert np.array_equal(np.where(np.isnan(expected), 0x7FC00000, wanted), got)


@pytest.mark.parametrize("parameters", [DEFAULT, AccumulatorParameters(0, 1, "truncate", normalise=True)], ids=str)
def test_products_of_corners_and_random_patterns(parameters):
    rng = np.random.default_rng(2)
    a, w = (grid.ravel() for grid in np.meshgrid(CORNERS, CORNERS))
    a = np.concatenate([a, rng.integers(0, 1 << 16, 1 << 18).astype(np.uint16)])
    w = np.concatenate([w, rng.integers(0, 1 << 16, 1 << 18).astype(np.uint16)])
    with np.errstate(invalid="ignore"):
        assert_is(one_step(lanes(a), w, False, parameters), as_float(a) * as_float(w), parameters)


@pytest.mark.parametrize("lane", range(4))
def test_every_draft_product(lane):
    for code in range(16):
        codes = np.zeros(4, np.uint8)
        codes[lane] = code
        words = np.broadcast_to(pack_draft(codes), EVERY.shape)
        state = one_step(lanes(EVERY, lane), words, True)
        finite = EVERY & 0x7C00 != 0x7C00
        assert_is(Accumulator(*(p[finite] for p in vars(state).values())), as_float(EVERY[finite]) * LEVELS[code])
        assert (state.flags[~finite] == NAN).all()


def test_a_draft_aligns_to_the_largest_of_four():
    """Against float64: every activation cut to 11 bits below the largest exponent."""
    rng = np.random.default_rng(3)
    activations = (rng.normal(0, 1, (20000, 4)) * 2.0 ** rng.integers(-12, 6, (20000, 4))).astype(np.float16)
    codes = rng.integers(0, 16, (20000, 4)).astype(np.uint8)
    exponent = np.frexp(np.maximum(np.abs(activations.astype(np.float64)), 2.0**-14).max(axis=1))[1]
    unit = 2.0 ** (exponent - 11)[:, None]
    expected = (np.trunc(activations / unit) * unit * LEVELS[codes]).sum(axis=1)
    assert_is(one_step(activations.view(np.uint16), pack_draft(codes), True), expected)


@pytest.mark.parametrize("draft", [False, True])
def test_infinities_and_nan_stay_until_a_new_sum(draft):
    one, infinity = np.float16(1).view(np.uint16), np.uint16(0x7C00)
    four = np.array([one, one, one, one])
    state = accumulate(Accumulator.zeros(), np.array([infinity, 0, 0, 0], np.uint16), one, False, True, DEFAULT)
    assert to_float32(state, DEFAULT) == 0x7F800000
    again = accumulate(state, four, one, draft, False, DEFAULT)
    assert to_float32(again, DEFAULT) == 0x7F800000
    opposite = accumulate(again, four, infinity | np.uint16(0x8000), False, False, DEFAULT)
    assert to_float32(opposite, DEFAULT) == 0x7FC00000
    assert to_float32(accumulate(opposite, four, one, draft, False, DEFAULT), DEFAULT) == 0x7FC00000
    assert accumulate(opposite, four, one, draft, True, DEFAULT).flags == 0


def test_a_zero_product_leaves_the_sum_alone():
    small, large, zero = (np.float16(x).view(np.uint16) for x in (2.0**-14, 60000.0, 0.0))
    state = one_step(lanes(np.array([small])), np.array([small]), False)
    for a, w in ((large, zero), (zero, large), (zero, zero)):
        after = accumulate(state, lanes(np.array([a])), np.array([w]), False, False, DEFAULT)
        assert all(np.array_equal(x, y) for x, y in zip(vars(after).values(), vars(state).values(), strict=True))
    idle = accumulate(state, lanes(np.array([zero])), np.array([0xFFFF], np.uint16), True, False, DEFAULT)
    assert idle.mantissa == state.mantissa
    assert idle.exponent == state.exponent


@pytest.mark.parametrize("parameters", [DEFAULT, AccumulatorParameters(2, 4, "truncate", normalise=True)], ids=str)
def test_float32_is_rounded_once(parameters):
    rng = np.random.default_rng(4)
    limit = 1 << parameters.width - 2
    mantissa = rng.integers(-limit, limit, 50000) >> rng.integers(0, parameters.width - 1, 50000)
    mantissa[:4] = [0, -limit, limit - 1, -1]
    exponent = rng.integers(0, 128, 50000)
    state = Accumulator(mantissa, exponent, np.zeros(50000, np.uint8))
    assert_is(state, np.ldexp(mantissa.astype(np.float64), exponent - 50 - parameters.fraction_bits), parameters)


def test_a_sum_depends_on_its_own_operations_only():
    """One sum alone equals the same one among others, and after other modes."""
    rng = np.random.default_rng(6)
    activations = rng.normal(0, 1, (20, 8, 4)).astype(np.float16).view(np.uint16)
    weights = rng.integers(0, 0x7000, (20, 8)).astype(np.uint16)
    draft = rng.random((20, 8)) < 0.5
    many, alone = Accumulator.zeros((8,)), Accumulator.zeros()
    alone = accumulate(alone, activations[3, 5], weights[3, 5], True, False, DEFAULT)
    for k in range(20):
        many = accumulate(many, activations[k], weights[k], draft[k], k == 0, DEFAULT)
        alone = accumulate(alone, activations[k, 2], weights[k, 2], bool(draft[k, 2]), k == 0, DEFAULT)
    assert alone.mantissa == many.mantissa[2]
    assert alone.exponent == many.exponent[2]


def test_long_sums_are_as_good_as_a_chain_of_float32():
    rng = np.random.default_rng(7)
    a = rng.standard_t(3, (2048, 64)).astype(np.float16)
    w = rng.normal(0, 0.02, (2048, 64)).astype(np.float16)
    state, chain = Accumulator.zeros((64,)), np.zeros(64, np.float32)
    for k in range(2048):
        state = accumulate(state, lanes(a[k].view(np.uint16)), w[k].view(np.uint16), False, k == 0, DEFAULT)
        chain += a[k].astype(np.float32) * w[k].astype(np.float32)
    products = a.astype(np.float64) * w.astype(np.float64)
    scale = np.abs(products).sum(axis=0)

    def error(sums):
        return np.sqrt(np.mean(((sums - products.sum(axis=0)) / scale) ** 2))

    assert error(to_float32(state, DEFAULT).view(np.float32).astype(np.float64)) < error(chain.astype(np.float64))
