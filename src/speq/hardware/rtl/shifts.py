"""Shifts of floating-point alignment and normalisation, as chains of multiplexers of one power of two each."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value


def shift_right_sticky(m: Module, value: Value, distance: Value) -> tuple[Value, Value]:
    """``value >> distance`` and whether a one was shifted out."""
    lost: Value = Value.cast(0)
    for stage in range(len(distance)):
        step, chosen = 1 << stage, distance[stage]
        out, shifted = Signal(name=f"lost_{step}"), Signal(len(value), name=f"right_{step}")
        m.d.comb += [
            out.eq(lost | (chosen & value[:step].any())),
            shifted.eq(Mux(chosen, value >> step, value)),
        ]
        lost, value = out, shifted
    return value, lost


def shift_left_normalised(m: Module, value: Value, limit: Value) -> tuple[Signal, Signal]:
    """``value`` shifted left until its highest bit is one, but by no more than ``limit``; and by how much.

    ``limit`` is not negative. A value of zero is shifted by anything up to the limit.
    """
    width = len(value)
    distance, left = Signal(range(width)), limit
    for stage in reversed(range(len(distance))):
        step = 1 << stage
        chosen, shifted = distance[stage], Signal(width, name=f"left_{step}")
        rest = Signal(len(limit), name=f"limit_{step}")
        m.d.comb += [
            chosen.eq((value[width - step :] == 0) & (left >= step)),
            shifted.eq(Mux(chosen, value << step, value)),
            rest.eq(Mux(chosen, left - step, left)),
        ]
        value, left = shifted, rest
    result = Signal(width)
    m.d.comb += result.eq(value)
    return result, distance
