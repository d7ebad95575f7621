"""P0, the baseline: one FP16 x FP16 product per cycle by a radix-4 Booth multiplier."""

from __future__ import annotations

from typing import ClassVar

from amaranth.hdl import Module, Value

from speq.hardware.parameters import PRODUCT_BITS
from speq.hardware.rtl.bit_heap import BitHeap, booth_digits, times_digit
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.row_edge import Unpacked


class P0(Core):
    """An FP16 multiplier and the accumulator."""

    DRAFTS: ClassVar[bool] = False

    def mantissa(self, m: Module) -> Value:
        return booth_product(m, self.row.significands[0], self.row.negative[0], self.weights)


def booth_product(m: Module, significand: Value, negative: Value, weight: Value) -> Value:
    """A significand times an FP16 weight's: the sign goes into the digits, so the product comes in two's complement."""
    sign = negative ^ weight[15]
    heap = BitHeap(PRODUCT_BITS + 1)
    for i, (one, two, minus) in enumerate(booth_digits(Unpacked(weight).significand)):
        digit_sign = minus ^ sign
        heap.add_negated_if(digit_sign, times_digit(significand, one, two, digit_sign), 2 * i)
    return heap.sum(m).as_signed()
