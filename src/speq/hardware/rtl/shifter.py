"""A left shifter for numbers that may be inverted already."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value


def shift_left(m: Module, value: Value, fill: Value, distance: Value, unit: int = 1) -> Value:
    """``value << unit * distance``, longer by the largest shift; bits below and above are ``fill``.

    With ``fill`` 1 for a number whose bits are inverted the result is the inverted shifted number.
    """
    for i in range(len(distance)):
        more = fill.replicate(unit << i)
        shifted = Signal(len(value) + (unit << i))
        m.d.comb += shifted.eq(Mux(distance[i], Cat(more, value), Cat(value, more)))
        value = shifted
    return value
