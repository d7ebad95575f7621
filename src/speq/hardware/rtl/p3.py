"""P3: the Booth multiplier's partial products are the draft's four products.

A row of the multiplier is the activation times a digit -2 to 2, at a place that is fixed: row ``i`` at ``4**i``. A
draft product is an activation times a signed power of two, so it is such a row too, at a place that its code decides.
The level of bin ``c`` is ``2**c``: the lowest bit of ``c`` chooses between digits 1 and 2, the two others the place
``4**(c >> 1)``, bin 0 is digit 0. So four of the six rows get a shifter of four places, which exact mode sets to the
row's own, and the same adders sum them up.
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Value

from speq.hardware.parameters import PRODUCT_BITS
from speq.hardware.rtl.bit_heap import BitHeap
from speq.hardware.rtl.booth import booth_digits, times_digit
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.operands import LANES
from speq.hardware.rtl.row_edge import Unpacked
from speq.hardware.rtl.shifter import shift_left


class P3(Core):
    """One FP16 product or four draft products per cycle, from the rows of one Booth multiplier."""

    def mantissa(self, m: Module) -> Value:
        row, draft = self.row, self.row.draft
        sign = row.negative[0] ^ self.weights[15]
        heap = BitHeap(PRODUCT_BITS + 1)
        for i, (one, two, minus) in enumerate(booth_digits(Unpacked(self.weights).significand)):
            if i < LANES:
                code = self.weights[4 * i : 4 * i + 4]
                c = code[:3]
                one = Mux(draft, ~c[0] & c.any(), one)
                two = Mux(draft, c[0], two)
                negative = Mux(draft, code[3] ^ row.negative[i], minus ^ sign)
                place = Mux(draft, c[1:], Const(i, 2))
                digit = times_digit(row.significands[i], one, two, negative)
                heap.add_negated_if(negative, shift_left(m, digit, negative, place, 2))
            else:
                one, two, negative = one & ~draft, two & ~draft, (minus ^ sign) & ~draft
                heap.add_negated_if(negative, times_digit(row.significands[0], one, two, negative), 2 * i)
        return heap.sum(m).as_signed()
