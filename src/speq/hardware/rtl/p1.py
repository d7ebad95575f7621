"""P1: the baseline's multiplier, and beside it four lanes that shift and add. Nothing is shared before the product."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Value

from speq.hardware.parameters import PRODUCT_BITS
from speq.hardware.rtl.bit_heap import BitHeap
from speq.hardware.rtl.booth import booth_product
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.operands import LANES
from speq.hardware.rtl.shifter import shift_left

DRAFT_BITS = 21
"""Four significands of 11 bits, shifted by up to 7, and a sign."""


class P1(Core):
    """One FP16 product from a multiplier, or four draft products from lanes of their own."""

    def mantissa(self, m: Module) -> Value:
        row = self.row
        product = booth_product(m, row.significands[0], row.negative[0], self.weights)
        heap = BitHeap(DRAFT_BITS)
        for i in range(LANES):
            code = self.weights[4 * i : 4 * i + 4]
            negative = code[3] ^ row.negative[i]
            level = Mux(code[:3].any(), row.significands[i], 0)[:11] ^ negative.replicate(11)
            heap.add_negated_if(negative, shift_left(m, level, negative, code[:3]))
        lanes = heap.sum(m).as_signed()
        return Mux(row.draft, lanes, product)[: PRODUCT_BITS + 1].as_signed()
