"""The multiply-add at the edge of a column: see :mod:`speq.hardware.golden.scaler`, which computes the same bits.

Three stages: multiply and compare exponents; align and add; normalise and round. Exact sums pass through unchanged and
take as long, so that results leave in the order of their steps.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from speq.hardware.golden.scaler import NAN
from speq.hardware.rtl.shifts import shift_left_normalised, shift_right_sticky

FLOAT32 = StructLayout({"fraction": 23, "exponent": 8, "sign": 1})
BFLOAT16 = StructLayout({"fraction": 7, "exponent": 8, "sign": 1})
INFINITY = 0x7F800000

_KIND = StructLayout({"given": 1, "bits": 32})
"""A result that does not come from the adder, if ``given``: infinity, NaN, or the sum of an exact pass."""


class Scaler(wiring.Component):
    """``sum`` and ``scale`` enter a cycle before ``addend`` and ``SCALER_LATENCY`` cycles before ``result``."""

    def __init__(self) -> None:
        super().__init__(
            {
                "draft": In(1),  # else the sum passes through
                "sum": In(FLOAT32),
                "scale": In(BFLOAT16),
                "addend": In(FLOAT32),
                "result": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Multiply.
        product, product_sign, exponent = Signal(32), Signal(), Signal(10)
        nothing, infinite, invalid, passing = Signal(), Signal(), Signal(), Signal()
        sum_bits = Signal(32)
        sum_none, scale_none = self.sum.exponent == 0, self.scale.exponent == 0
        sum_full, scale_full = self.sum.exponent == 0xFF, self.scale.exponent == 0xFF
        m.d.sync += [
            product.eq(Mux(sum_none | scale_none, 0, Cat(self.sum.fraction, 1)[:24] * Cat(self.scale.fraction, 1)[:8])),
            product_sign.eq(self.sum.sign ^ self.scale.sign),
            exponent.eq(self.sum.exponent + self.scale.exponent),
            nothing.eq(sum_none | scale_none),
            infinite.eq(sum_full | scale_full),
            invalid.eq(
                (sum_full & (self.sum.fraction != 0))
                | (scale_full & (self.scale.fraction != 0))
                | (sum_full & scale_none)
                | (scale_full & sum_none)
            ),
            passing.eq(~self.draft),
            sum_bits.eq(self.sum.as_value()),
        ]

        # Align and add.
        addend = self.addend
        addend_exponent = Mux(addend.exponent == 0, 1, addend.exponent)
        addend_mantissa = Cat(addend.fraction, addend.exponent != 0)
        wanted, position = Signal(signed(12)), Signal(signed(12))
        m.d.comb += [
            wanted.eq(addend_exponent - exponent + 135),
            position.eq(Mux(nothing | (wanted > 35), 35, wanted)),
        ]
        aligned, lost = _align(m, addend_mantissa, position)
        framed, framed_product = Cat(aligned[0] | lost, aligned[1:]), Cat(Const(0, 1), product)
        opposite = product_sign ^ addend.sign
        difference = Signal(signed(62))
        total, top_exponent, sign, kind = Signal(61), Signal(11), Signal(), Signal(_KIND)
        m.d.comb += difference.eq(framed - framed_product)
        magnitude = Mux(opposite, Mux(difference < 0, -difference, difference), framed + framed_product)
        equal = Mux(opposite, difference == 0, (framed == 0) & (product == 0))
        addend_full = addend.exponent == 0xFF
        wrong = invalid | (addend_full & ((addend.fraction != 0) | (infinite & opposite)))
        infinity_sign = Mux(infinite, product_sign, addend.sign)
        m.d.sync += [
            total.eq(magnitude),
            top_exponent.eq(addend_exponent - position + 37),
            sign.eq(Mux(equal, product_sign & addend.sign, addend.sign ^ (opposite & (difference < 0)))),
            kind.given.eq(passing | infinite | addend_full),
            kind.bits.eq(Mux(passing, sum_bits, Mux(wrong, NAN, Cat(Const(INFINITY, 31), infinity_sign)))),
        ]

        # Normalise and round.
        normalised, shift = shift_left_normalised(m, total, top_exponent - 1)
        odd, guard, below = normalised[37], normalised[36], normalised[:36].any()
        rounded = Signal(34)
        m.d.comb += rounded.eq(((top_exponent - shift - 1)[:10] << 23) + normalised[37:] + (guard & (odd | below)))
        overflow = rounded >= INFINITY
        finite = Cat(Mux(total == 0, 0, Mux(overflow, INFINITY, rounded[:31])), sign)
        m.d.sync += self.result.eq(Mux(kind.given, kind.bits, finite))
        return m


def _align(m: Module, mantissa: Value, position: Value) -> tuple[Signal, Signal]:
    """The addend's 24 bits at a position from below 0 to 35 of the frame, 60 bits, and whether any were lost."""
    left, right, lost = Signal(60), Signal(24), Signal()
    far = Signal(range(32))
    m.d.comb += [left.eq(mantissa << position[:6]), far.eq(Mux(position < -25, 25, (-position)[:5]))]
    shifted, sticky = shift_right_sticky(m, mantissa, far)
    aligned = Signal(60)
    m.d.comb += [
        right.eq(shifted),
        lost.eq((position < 0) & sticky),
        aligned.eq(Mux(position < 0, right, left)),
    ]
    return aligned, lost
