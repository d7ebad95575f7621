"""The running sum: align the summand with the smaller exponent, add, keep the carry; normalise if so configured."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.parameters import EXPONENT_BITS, AccumulatorParameters
from speq.hardware.rtl.operands import PRODUCT, accumulator_layout


class Accumulate(wiring.Component):
    """Adds ``product`` to the sum in every cycle; ``product.first`` drops the sum before.

    A product of zero with exponent 0 and no flags changes nothing, so a cycle without an operation needs no enable.
    """

    def __init__(self, parameters: AccumulatorParameters) -> None:
        self.parameters = parameters
        super().__init__({"product": In(PRODUCT), "accumulator": Out(accumulator_layout(parameters))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        width = self.parameters.width
        keep = ~self.product.first
        mantissa, exponent = Signal(signed(width)), Signal(EXPONENT_BITS)
        state = Signal(accumulator_layout(self.parameters), reset_less=True)
        m.d.comb += self.accumulator.eq(state)
        m.d.comb += mantissa.eq(Mux(keep, state.mantissa, 0))
        m.d.comb += exponent.eq(Mux(keep, state.exponent, 0))
        summand = Signal(signed(width))
        m.d.comb += summand.eq(self.product.mantissa << self.parameters.fraction_bits)

        # One subtraction compares the exponents; its absolute value, in ones' complement plus a late one, is the shift.
        difference = Signal(signed(EXPONENT_BITS + 1))
        m.d.comb += difference.eq(exponent - self.product.exponent)
        summand_is_larger = difference[-1]
        distance = Signal(EXPONENT_BITS)
        m.d.comb += distance.eq(Mux(summand_is_larger, -difference, difference))
        large, small = Signal(signed(width)), Signal(signed(width))
        m.d.comb += large.eq(Mux(summand_is_larger, summand, mantissa))
        m.d.comb += small.eq(Mux(summand_is_larger, mantissa, summand))
        larger_exponent = Mux(summand_is_larger, self.product.exponent, exponent)

        shifted, up = shift_right(m, small, distance, self.parameters)
        total = Signal(signed(width))
        m.d.comb += total.eq(large + shifted + up)
        carry = total[-1] ^ total[-2]
        new_mantissa, new_exponent = Signal(signed(width)), Signal(EXPONENT_BITS)
        m.d.comb += new_mantissa.eq(Mux(carry, total >> 1, total))
        m.d.comb += new_exponent.eq(larger_exponent + carry)
        if self.parameters.normalise:
            new_mantissa, new_exponent = normalise(m, new_mantissa, new_exponent)
        m.d.sync += [
            state.mantissa.eq(new_mantissa),
            state.exponent.eq(new_exponent),
            state.flags.eq(Mux(keep, state.flags, 0) | self.product.flags),
        ]
        return m


def shift_right(m: Module, value: Value, distance: Value, parameters: AccumulatorParameters) -> tuple[Value, Value]:
    """``value >> distance`` and the bit that rounding adds to it.

    A logarithmic shifter with one bit below the last, the guard; what falls out below that is collected, if the
    rounding asks for it. Stages that would shift everything out are one.
    """
    rounds = parameters.rounding == "nearest_even"
    now = Cat(Const(0, 1), value).as_signed() if rounds else value
    sticky: Value = Const(0)
    stages = [i for i in range(len(distance)) if 1 << i < len(now)]
    far = distance[len(stages) :].any()
    for i in reversed(stages):
        following = Signal(signed(len(now)))
        m.d.comb += following.eq(Mux(distance[i], now >> (1 << i), now))
        if rounds:
            sticky = sticky | (distance[i] & now[: 1 << i].any())
        now = following
    result = Signal(signed(len(now)))
    m.d.comb += result.eq(Mux(far, now[-1].replicate(len(now)), now))
    if not rounds:
        return result, Const(0)
    guard, shifted = result[0], result[1:].as_signed()
    return shifted, guard & (sticky | shifted[0])


def normalise(m: Module, mantissa: Value, exponent: Value) -> tuple[Value, Value]:
    """Redundant sign bits out, as far as the exponent allows, but for the carry bit; 0 gets exponent 0."""
    for i in reversed(range((len(mantissa) - 2).bit_length())):
        step = 1 << i
        redundant = mantissa[-2 - step :]
        same = redundant.all() | ~redundant.any()
        move = Signal()
        m.d.comb += move.eq(same & (exponent >= step))
        new_mantissa, new_exponent = Signal(signed(len(mantissa))), Signal(len(exponent))
        m.d.comb += new_mantissa.eq(Mux(move, mantissa << step, mantissa))
        m.d.comb += new_exponent.eq(exponent - (move << i))
        mantissa, exponent = new_mantissa, new_exponent
    return mantissa, Mux(mantissa.any(), exponent, 0)
