"""Radix-4 Booth multiplication: a factor as digits -2 to 2 halves the rows to be added and has room for a sign."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Value

from speq.hardware.parameters import PRODUCT_BITS
from speq.hardware.rtl.bit_heap import BitHeap
from speq.hardware.rtl.row_edge import Unpacked


def booth_digits(significand: Value) -> list[tuple[Value, Value, Value]]:
    """An unsigned number as digits -2 to 2 of weight ``4**i``: whether each is 1 or -1, is 2 or -2, is negative.

    Radix-4 recoding after Booth and MacSorley. Zero may come with either sign.
    """
    bits = Cat(Const(0), significand, Const(0, 2))
    digits = []
    for i in range((len(significand) + 2) // 2):
        low, middle, high = bits[2 * i], bits[2 * i + 1], bits[2 * i + 2]
        one = middle ^ low
        digits.append((one, (high ^ middle) & ~one, high))
    return digits


def times_digit(value: Value, one: Any, two: Any, negative: Any) -> Value:
    """``value`` times the magnitude of a digit, one bit longer, inverted where the digit is negative."""
    length = len(value) + 1
    chosen = Mux(one, value, 0) | Mux(two, value << 1, 0)
    return chosen[:length] ^ Value.cast(negative).replicate(length)


def booth_product(m: Module, significand: Value, negative: Value, weight: Value) -> Value:
    """A significand times an FP16 weight's: the sign goes into the digits, so the product comes in two's complement."""
    sign = negative ^ weight[15]
    heap = BitHeap(PRODUCT_BITS + 1)
    for i, (one, two, minus) in enumerate(booth_digits(Unpacked(weight).significand)):
        digit_sign = minus ^ sign
        heap.add_negated_if(digit_sign, times_digit(significand, one, two, digit_sign), 2 * i)
    return heap.sum(m).as_signed()
