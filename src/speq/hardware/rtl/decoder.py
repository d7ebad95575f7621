"""The bit-sharing decoder: the exact FP16 weight from its code, its residual and the exponents of the bins.

The draft view needs no circuit: a code is a sign and the level's own exponent. The exact view is a choice of one of
eight exponents and an addition of 5 bits: bins begin at whole exponents, so the fraction passes through.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out


class Decoder(wiring.Component):
    """Combinational: ``weight`` is the FP16 pattern; see :func:`speq.hardware.golden.decoder.decode`.

    Attributes:
        code: sign and bin.
        residual: 12 bits.
        exponents: where the bins begin, one table per tensor.
        weight: FP16 bits.
    """

    def __init__(self) -> None:
        super().__init__(
            {"code": In(4), "residual": In(12), "exponents": In(data.ArrayLayout(5, 8)), "weight": Out(16)}
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        start = Array(self.exponents[c] for c in range(8))[self.code[:3]]
        exponent = (start + self.residual[10:])[:5]
        m.d.comb += self.weight.eq(Cat(self.residual[:10], exponent, self.code[3]))
        return m
