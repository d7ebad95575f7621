"""The head of a column: the decoder that all processing elements of the column share, and their weight register."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import wiring
from amaranth.lib.data import ArrayLayout
from amaranth.lib.wiring import In, Out

from speq.hardware.rtl.decoder import Decoder


class ColumnEdge(wiring.Component):
    """``weights`` follows one cycle later: the FP16 weight of a code and residual, or four codes as they are.

    Attributes:
        draft: the mode.
        table: the exponents at which the bins of the tensor begin.
        word: four codes (draft), or a code in bits 0 to 3 and a residual in bits 4 to 15 (exact).
        weights: what the processing elements of the column multiply by.
    """

    LATENCY = 1

    def __init__(self) -> None:
        super().__init__({"draft": In(1), "table": In(ArrayLayout(5, 8)), "word": In(16), "weights": Out(16)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.decoder = decoder = Decoder()
        m.d.comb += [
            decoder.code.eq(self.word[:4]),
            decoder.residual.eq(self.word[4:]),
            decoder.exponents.eq(self.table),
        ]
        m.d.sync += self.weights.eq(Mux(self.draft, self.word, decoder.weight))
        return m
