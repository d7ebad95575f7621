"""P2: the weight's significand of 11 bits in slices of 3, 3, 3 and 2; a lane multiplies one of them.

In exact mode all lanes have the same activation, and lane ``i`` is worth ``8**i``. In draft mode each has its own, and
its slice has a single one: level ``2**c`` is bit ``c % 3`` of a slice worth ``8**(c // 3)``. So the only difference
between the modes is where the slice and its place come from; shifters, signs and the adder of four are the same.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Value

from speq.hardware.parameters import PRODUCT_BITS
from speq.hardware.rtl.bit_heap import BitHeap
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.operands import LANES
from speq.hardware.rtl.row_edge import Unpacked
from speq.hardware.rtl.shifter import shift_left

LANE_BITS = 14


class P2(Core):
    """One FP16 product or four draft products per cycle, from four multipliers of 11 by 3 bits."""

    def mantissa(self, m: Module) -> Value:
        row, draft = self.row, self.row.draft
        significand = Unpacked(self.weights).significand
        sum_ = BitHeap(PRODUCT_BITS + 1)
        for i in range(LANES):
            code = self.weights[4 * i : 4 * i + 4]
            level = [code[:3] == c for c in range(8)]
            one_hot = Cat(level[3] | level[6], level[1] | level[4] | level[7], level[2] | level[5])
            third = Cat(level[3] | level[4] | level[5], level[6] | level[7])
            digit = Mux(draft, one_hot, significand[3 * i : 3 * i + 3])[:3]
            lane = BitHeap(LANE_BITS)
            for bit in range(3):
                lane.add(Mux(digit[bit], row.significands[i], 0), bit)
            negative = row.negative[i] ^ Mux(draft, code[3], self.weights[15])
            product = lane.sum(m) ^ negative.replicate(LANE_BITS)
            place = Mux(draft, third, Const(i, 2))
            sum_.add_negated_if(negative, shift_left(m, product, negative, place, 3))
        return sum_.sum(m).as_signed()
