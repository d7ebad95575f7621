"""The processing elements: rows of tokens by columns of output channels.

A row edge prepares a token's activations and broadcasts them along its row; a column edge turns codes and residuals
into weights and broadcasts them along its column. Each processing element keeps its sum in place. When a sum is
finished, all processing elements copy it into a chain of registers per column, which moves up by one row per cycle,
while they begin the next sum, in whatever mode.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.data import ArrayLayout
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import LANES, ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.column_edge import ColumnEdge
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.operands import accumulator_layout
from speq.hardware.rtl.parts import Parts, inline
from speq.hardware.rtl.row_edge import RowEdge


class Tile(wiring.Component):
    """Operands of one operation in; out of every column, the sum that left a row in this cycle.

    The sum of row ``r`` of a column is at ``sums`` in the cycle ``array.pe_latency + 1 + r`` after ``last``. Rows move
    up in every cycle, so a sum must not end sooner than the one before it has left.
    """

    def __init__(
        self, array: ArrayParameters, accumulator: AccumulatorParameters, core: type[Core], parts: Parts = inline
    ) -> None:
        self._array, self._accumulator, self._core, self._parts = array, accumulator, core, parts
        super().__init__(
            {
                "enable": In(array.rows),
                "draft": In(1),
                "first": In(1),
                "last": In(1),
                "table": In(ArrayLayout(5, 8)),
                "activations": In(ArrayLayout(ArrayLayout(16, LANES), array.rows)),
                "weights": In(ArrayLayout(16, array.columns)),
                "sums": Out(ArrayLayout(accumulator_layout(accumulator), array.columns)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        columns = []
        for index in range(self._array.columns):
            m.submodules[f"column_{index}"] = edge = self._parts("column_edge", ColumnEdge)
            m.d.comb += [edge.draft.eq(self.draft), edge.table.eq(self.table), edge.word.eq(self.weights[index])]
            columns.append(edge.weights)
        crossings = []
        lanes = LANES if self._core.DRAFTS else 1
        for row in range(self._array.rows):
            m.submodules[f"row_{row}"] = edge = self._parts("row_edge", lambda: RowEdge(lanes))
            m.d.comb += [
                edge.enable.eq(self.enable[row]),
                edge.draft.eq(self.draft),
                edge.first.eq(self.first),
                edge.activations.eq(self.activations[row]),
            ]
            for column, weights in enumerate(columns):
                m.submodules[f"core_{row}_{column}"] = core = self._parts("core", lambda: self._core(self._accumulator))
                m.d.comb += [core.row.eq(edge.row), core.weights.eq(weights)]
                crossings.append(core.accumulator)
        self._chains(m, crossings)
        return m

    def _chains(self, m: Module, crossings: list[Any]) -> None:
        capture = self.last
        for cycle in range(self._array.pe_latency):
            delayed = Signal(name=f"last_{cycle + 1}")
            m.d.sync += delayed.eq(capture)
            capture = delayed
        for column in range(self._array.columns):
            chain = [
                Signal(accumulator_layout(self._accumulator), name=f"finished_{row}_{column}")
                for row in range(self._array.rows)
            ]
            for row, register in enumerate(chain):
                with m.If(capture):
                    m.d.sync += register.eq(crossings[row * self._array.columns + column])
                if row + 1 < len(chain):
                    with m.Else():
                        m.d.sync += register.eq(chain[row + 1])
            m.d.comb += self.sums[column].eq(chain[0])
