"""A processing element on its own, with the edge of a row and the head of a column of one."""

from __future__ import annotations

from typing import Any, ClassVar

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.operands import LANES, accumulator_layout
from speq.hardware.rtl.row_edge import RowEdge


class ProcessingElement(wiring.Component):
    """One operation per cycle on FP16 activations and a word of weights; the sum follows ``LATENCY`` cycles later.

    Attributes:
        enable: the operands of this cycle are valid.
        draft: four products with codes instead of one with an FP16 weight.
        first: this operation begins a new sum.
        activations: FP16 bits; exact mode uses element 0.
        weights: FP16 bits, or four codes, code ``i`` in bits ``4 i`` to ``4 i + 3``.
        accumulator: the running sum.
    """

    LATENCY: ClassVar[int] = RowEdge.LATENCY + Core.LATENCY

    def __init__(self, parameters: AccumulatorParameters, core: type[Core]) -> None:
        self.parameters = parameters
        self._core = core
        super().__init__(
            {
                "enable": In(1),
                "draft": In(1),
                "first": In(1),
                "activations": In(data.ArrayLayout(16, LANES)),
                "weights": In(16),
                "accumulator": Out(accumulator_layout(parameters)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.edge = edge = RowEdge(LANES if self._core.DRAFTS else 1)
        m.submodules.core = core = self._core(self.parameters)
        weights = Signal(16)
        m.d.sync += weights.eq(self.weights)
        m.d.comb += [
            edge.enable.eq(self.enable),
            edge.draft.eq(self.draft),
            edge.first.eq(self.first),
            edge.activations.eq(self.activations),
            core.row.eq(edge.row),
            core.weights.eq(weights),
            self.accumulator.eq(core.accumulator),
        ]
        return m
