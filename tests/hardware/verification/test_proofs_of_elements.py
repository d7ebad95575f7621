"""Proofs: the decoder is a bijection, draft lanes multiply by powers of two, and idle cycles leave a sum alone."""

from __future__ import annotations

import pytest

pytest.importorskip("amaranth", reason="needs speq[hardware]")
pytest.importorskip("z3", reason="needs speq[verification]")

from amaranth.hdl import Array, Assert, Assume, Cat, Const, Mux, Signal, Value, signed

from speq.hardware.parameters import PRODUCT_BITS, AccumulatorParameters
from speq.hardware.rtl.accumulator import Accumulate
from speq.hardware.rtl.decoder import Decoder
from speq.hardware.rtl.operands import PRODUCT
from speq.hardware.synthesis.table import VARIANTS
from speq.hardware.verification.formal import Harness, Refuted, free, prove

DRAFTING = [name for name, variant in VARIANTS.items() if variant.DRAFTS]


def decoder_of(m, name, table):
    """A decoder with any code and residual, and whether an encoder would have written them: the last bin that fits."""
    m.submodules[name] = decoder = Decoder()
    m.d.comb += [
        decoder.code.eq(free(m, 4, f"{name}_code")),
        decoder.residual.eq(free(m, 12, f"{name}_residual")),
        Value.cast(decoder.exponents).eq(Cat(table)),
    ]
    start = Array(table)[decoder.code[:3]]
    magnitude = Signal(17, name=f"{name}_magnitude")
    m.d.comb += magnitude.eq((start << 10) + decoder.residual)
    later = Cat((c > decoder.code[:3]) & ((table[c] << 10) <= magnitude) for c in range(8)).any()
    return decoder, ~later & (magnitude < 1 << 15)


def test_decoder_is_a_bijection():
    """For every table: no two words of an encoder have the same weight, and every weight in reach has a word."""

    def build(m):
        table = [free(m, 5, f"bin{c}", constant=True) for c in range(8)]
        first, first_written = decoder_of(m, "first", table)
        second, second_written = decoder_of(m, "second", table)
        different = (first.code != second.code) | (first.residual != second.residual)
        with m.If(first_written & second_written & different):
            m.d.comb += Assert(first.weight != second.weight)

        weight = free(m, 16, "weight")
        m.submodules.third = third = Decoder()
        chosen, start = Const(0, 3), table[0]
        for c in range(1, 8):
            fits = (table[c] << 10) <= weight[:15]
            chosen, start = Mux(fits, c, chosen), Mux(fits, table[c], start)
        residual = Signal(17)
        m.d.comb += [
            residual.eq(weight[:15] - (start << 10)),
            third.code.eq(Cat(chosen[:3], weight[15])),
            third.residual.eq(residual),
            Value.cast(third.exponents).eq(Cat(table)),
        ]
        with m.If(residual < 1 << 12):
            m.d.comb += Assert(third.weight == weight)

    prove(Harness(build), 1, induction=False)


def draft_mantissa(m, name):
    """A variant's mantissa in draft mode, its significands, their signs and the codes, all free."""
    core = VARIANTS[name](AccumulatorParameters())
    m.submodules.core = core
    codes = [free(m, 4, f"code{i}") for i in range(4)]
    significands = [free(m, 11, f"significand{i}") for i in range(4)]
    negative = free(m, 4, "negative")
    m.d.comb += [core.row.draft.eq(1), core.weights.eq(Cat(codes)), core.row.negative.eq(negative)]
    m.d.comb += [core.row.significands[i].eq(value) for i, value in enumerate(significands)]
    mantissa = Signal(signed(PRODUCT_BITS + 1))
    m.d.comb += mantissa.eq(core.mantissa(m))
    return mantissa, significands, negative, codes


def products(significands, negative, codes):
    """What each lane should give: the integer multiple of the significand that its code stands for."""
    signs = [negative[i] ^ code[3] for i, code in enumerate(codes)]
    magnitudes = [
        significand * Array([0, 2, 4, 8, 16, 32, 64, 128])[code[:3]]
        for significand, code in zip(significands, codes, strict=True)
    ]
    return [Mux(sign, -magnitude, magnitude) for sign, magnitude in zip(signs, magnitudes, strict=True)]


FAST = ("P3", 3)


@pytest.mark.parametrize(
    ("name", "lane"),
    [
        pytest.param(name, lane, marks=[] if (name, lane) == FAST else pytest.mark.slow)
        for name in DRAFTING
        for lane in range(4)
    ],
)
def test_a_lane_multiplies_by_a_power_of_two(name, lane):
    def build(m):
        mantissa, significands, negative, codes = draft_mantissa(m, name)
        m.d.comb += [Assume(significand == 0) for i, significand in enumerate(significands) if i != lane]
        m.d.comb += Assert(mantissa == products(significands, negative, codes)[lane])

    prove(Harness(build), 1, induction=False)


def test_idle_cycles_leave_a_sum_alone():
    """And no sum outgrows its mantissa: the bit for the carry is a copy of the sign after every operation."""

    def build(m):
        m.submodules.accumulate = accumulate = Accumulate(AccumulatorParameters())
        state = accumulate.accumulator
        idle = free(m, 1, "idle")
        product = PRODUCT(free(m, PRODUCT, "product"))
        m.d.comb += Value.cast(accumulate.product).eq(Mux(idle, 0, Value.cast(product)))
        # A carry out of the exponent needs 2**60 operations.
        m.d.comb += [Assume(state.exponent < 127), Assume(product.exponent < 63)]
        before, was_idle = Signal.like(Value.cast(state)), Signal()
        m.d.sync += [before.eq(Value.cast(state)), was_idle.eq(idle)]
        m.d.comb += Assert(state.mantissa[-1] == state.mantissa[-2])
        with m.If(was_idle):
            m.d.comb += Assert(Value.cast(state) == before)

    prove(Harness(build), 2)


@pytest.mark.slow
def test_a_wrong_lane_is_refuted():
    """The proofs can fail: the level of one bin too many."""

    def build(m):
        mantissa, significands, negative, codes = draft_mantissa(m, "P3")
        m.d.comb += [Assume(significand == 0) for significand in significands[1:]]
        m.d.comb += Assert(mantissa == products(significands, negative, [codes[0] ^ 1, *codes[1:]])[0])

    with pytest.raises(Refuted):
        prove(Harness(build), 1, induction=False)
