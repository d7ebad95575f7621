"""From a running sum to FP32, rounded to nearest even."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.parameters import EXPONENT_BIAS, AccumulatorParameters
from speq.hardware.rtl.operands import accumulator_layout


class Normalise(wiring.Component):
    """Combinational: ``float32`` is the value of ``accumulator``; see :func:`speq.hardware.golden.pe.to_float32`."""

    def __init__(self, parameters: AccumulatorParameters) -> None:
        self.parameters = parameters
        super().__init__({"accumulator": In(accumulator_layout(parameters)), "float32": Out(32)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        mantissa, flags = self.accumulator.mantissa, self.accumulator.flags
        negative = mantissa[-1]
        # At least a leading one, 23 bits, a guard and a bit below it; the sign bit catches the largest magnitude.
        width = max(self.parameters.width, 26)
        padding = width - self.parameters.width
        magnitude = Signal(width)
        m.d.comb += magnitude.eq(Mux(negative, -mantissa, mantissa)[: self.parameters.width] << padding)
        exponent = Signal(8)
        bias = 127 - EXPONENT_BIAS - self.parameters.fraction_bits + self.parameters.width - 1
        m.d.comb += exponent.eq(self.accumulator.exponent + bias)
        for i in reversed(range((width - 1).bit_length())):
            step = 1 << i
            if step < width:
                shifted, lower = Signal(width), Signal(8)
                zeros = ~magnitude[-step:].any()
                m.d.comb += shifted.eq(Mux(zeros, magnitude << step, magnitude))
                m.d.comb += lower.eq(exponent - (zeros << i))
                magnitude, exponent = shifted, lower

        kept, guard, rest = magnitude[-24:], magnitude[-25], magnitude[:-25].any()
        up = guard & (rest | kept[0])
        finite = Signal(32)
        with m.If(kept[-1]):
            m.d.comb += finite.eq(Cat((Cat(kept[:-1], exponent) + up)[:31], negative))
        with m.Switch(flags):
            with m.Case(0):
                m.d.comb += self.float32.eq(finite)
            with m.Case(3):
                m.d.comb += self.float32.eq(0x7FC00000)
            with m.Default():
                m.d.comb += self.float32.eq(Cat(Const(0x7F800000, 31), flags[1]))
        return m
