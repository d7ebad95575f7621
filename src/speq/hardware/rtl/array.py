"""The array: steps in, results out. A tile of processing elements with its operand registers and its output edge.

Drafts and exact passes may follow each other step by step; the sequencer decides when a sum may end.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.job import result_layout, step_layout, sum_layout
from speq.hardware.rtl.output_edge import OutputEdge
from speq.hardware.rtl.parts import Parts, inline
from speq.hardware.rtl.tile import Tile


class Array(wiring.Component):
    """``taken`` is 1 in a cycle in which a result leaves."""

    def __init__(
        self, array: ArrayParameters, accumulator: AccumulatorParameters, core: type[Core], parts: Parts = inline
    ) -> None:
        self._array, self._accumulator, self._core, self._parts = array, accumulator, core, parts
        super().__init__(
            {
                "step": In(step_layout(array)),
                "results": Out(stream.Signature(result_layout(array))),
                "taken": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.tile = tile = Tile(self._array, self._accumulator, self._core, self._parts)
        m.submodules.edge = edge = OutputEdge(self._array, self._accumulator, self._parts)
        operands = Signal(step_layout(self._array))
        m.d.sync += operands.eq(self.step)
        for name in ("enable", "draft", "first", "last", "table", "activations", "weights"):
            m.d.comb += getattr(tile, name).eq(operands[name])

        ends, about = operands.last, operands.sum
        for cycle in range(self._array.pe_latency + 1):
            ends_later, about_later = Signal(name=f"ends_{cycle}"), Signal(sum_layout(self._array), name=f"sum_{cycle}")
            m.d.sync += [ends_later.eq(ends), about_later.eq(about)]
            ends, about = ends_later, about_later
        m.d.comb += [edge.ends.eq(ends), edge.sum.eq(about), edge.sums.eq(tile.sums), self.taken.eq(edge.taken)]
        wiring.connect(m, edge.results, wiring.flipped(self.results))
        return m
