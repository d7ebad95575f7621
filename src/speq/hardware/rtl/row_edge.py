"""The edge of a row: activations are unpacked, and in a draft aligned, once for all processing elements of the row.

All elements of a row see the same activations, so whatever depends on them alone is computed here and its cost is
shared by the columns: hidden bits, zeros, infinities and NaN, the largest of four exponents and the four shifters of a
draft. What is left in an element is what depends on its weight.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.rtl.operands import LANES, ROW_OPERANDS


class RowEdge(wiring.Component):
    """Registers the operands of a row; ``LATENCY`` is one cycle.

    Args:
        lanes: 4 for elements with a draft mode; 1 leaves ``activations`` 1 to 3, ``draft`` and the other lanes of
            ``row`` unused, which is what the edge of a plain FP16 array is.
    """

    LATENCY = 1

    def __init__(self, lanes: int = LANES) -> None:
        self._lanes = lanes
        super().__init__(
            {
                "enable": In(1),
                "draft": In(1),
                "first": In(1),
                "activations": In(data.ArrayLayout(16, LANES)),
                "row": Out(ROW_OPERANDS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        row = Signal(ROW_OPERANDS)
        unpacked = [Unpacked(self.activations[i]) for i in range(self._lanes)]
        one = unpacked[0]
        significands, signs = [one.significand], [one.negative]
        exponent, infinite, nan = one.exponent, one.infinite, one.nan
        if self._lanes > 1:
            largest = _largest(m, [each.exponent for each in unpacked])
            aligned = [each.significand >> (largest - each.exponent)[:5] for each in unpacked]
            significands = [Mux(self.draft, each, one.significand) for each in aligned]
            signs = [Mux(self.draft, each.negative, one.negative) for each in unpacked]
            exponent = Mux(self.draft, largest, one.exponent)
            not_finite = Cat(each.infinite | each.nan for each in unpacked).any()
            infinite, nan = one.infinite & ~self.draft, Mux(self.draft, not_finite, one.nan)
            m.d.comb += row.draft.eq(self.draft)
        with m.If(self.enable):
            m.d.comb += [row.valid.eq(1), row.first.eq(self.first)]
            m.d.comb += [row.exponent.eq(exponent), row.infinite.eq(infinite), row.nan.eq(nan)]
            for i, (significand, sign) in enumerate(zip(significands, signs, strict=True)):
                m.d.comb += [row.significands[i].eq(significand), row.negative[i].eq(sign)]
        m.d.sync += self.row.eq(row)
        return m


class Unpacked:
    """The parts of an FP16 pattern: significand with hidden bit, exponent (0 for zero, 1 for subnormals), its kind."""

    def __init__(self, bits: Any) -> None:
        field, fraction = Value.cast(bits)[10:15], Value.cast(bits)[:10]
        self.negative = Value.cast(bits)[15]
        self.significand = Cat(fraction, field.any())
        self.zero = ~(field.any() | fraction.any())
        self.exponent = Cat(field[0] | (~field.any() & fraction.any()), field[1:])
        self.infinite = field.all() & ~fraction.any()
        self.nan = field.all() & fraction.any()


def _largest(m: Module, exponents: list[Value]) -> Value:
    """The largest of some numbers, by a tree of comparisons."""
    while len(exponents) > 1:
        pairs = zip(exponents[::2], exponents[1::2], strict=True)
        exponents = [Mux(a > b, a, b) for a, b in pairs]
        for i, value in enumerate(exponents):
            exponents[i] = Signal(5)
            m.d.comb += exponents[i].eq(value)
    return exponents[0]
