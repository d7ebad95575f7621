"""A bit heap: bits of different weights that are to be added, compressed by full adders and then added once.

Multipliers and sums of several numbers are the same problem in this form: columns of bits of equal weight. Full adders
turn three bits of a column into one and a carry until no column has more than two (Dadda, 1965); two rows are left for
one carry-propagating adder.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value


class BitHeap:
    """Bits to be added modulo ``2**width``."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._columns: list[list[Value]] = [[] for _ in range(width)]
        self._constant = 0

    def add(self, value: Any, position: int = 0) -> None:
        """Add an unsigned number times ``2**position``; bits beyond the width are dropped."""
        for i, bit in enumerate(Value.cast(value)):
            if position + i < self.width:
                self._columns[position + i].append(bit)

    def add_negated_if(self, negative: Value, value: Any, position: int = 0) -> None:
        """Add ``value * 2**position``, whose bits have been inverted already where ``negative`` is 1: the number that
        they then stand for is one less than the negated value, and its sign bit is ``negative``.

        A sign bit of weight -2**n is its complement of weight 2**n, minus 2**n: the constants of all numbers are added
        up here and cost at most one bit per column.
        """
        top = position + len(Value.cast(value))
        self.add(value, position)
        self.add(~negative, top)
        self._constant -= 1 << top
        self.add(negative, position)

    def sum(self, m: Module) -> Value:
        """The sum, ``width`` bits; the adders become part of ``m``."""
        columns = [list(column) for column in self._columns]
        for i in range(self.width):
            if self._constant >> i & 1:
                columns[i].append(Const(1))
        while any(len(column) > 2 for column in columns):
            columns = _compress(m, columns)
        rows = [Cat(column[i] if i < len(column) else Const(0) for column in columns) for i in range(2)]
        return (rows[0] + rows[1])[: self.width]


def _compress(m: Module, columns: list[list[Value]]) -> list[list[Value]]:
    """One level of adders, no more of them than bring every column to the next height of Dadda's sequence."""
    height = 2
    while height * 3 // 2 < max(map(len, columns)):
        height = height * 3 // 2
    reduced: list[list[Value]] = [[] for _ in range(len(columns) + 1)]
    for i, column in enumerate(columns):
        bits = list(column)
        while len(bits) + len(reduced[i]) > height:
            count = 2 if len(bits) + len(reduced[i]) == height + 1 else 3
            total, carry = _adder(m, bits[:count])
            reduced[i].append(total)
            reduced[i + 1].append(carry)
            del bits[:count]
        reduced[i].extend(bits)
    return reduced[: len(columns)]


def _adder(m: Module, bits: list[Value]) -> tuple[Value, Value]:
    """Sum and carry of two or three bits."""
    total, carry = Signal(), Signal()
    if len(bits) == 2:
        m.d.comb += [total.eq(bits[0] ^ bits[1]), carry.eq(bits[0] & bits[1])]
    else:
        a, b, c = bits
        m.d.comb += [total.eq(a ^ b ^ c), carry.eq((a & b) | (c & (a ^ b)))]
    return total, carry
