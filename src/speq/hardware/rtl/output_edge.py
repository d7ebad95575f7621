"""The edge at which results leave: per column a normaliser and a scaler, and one output queue for all of them.

Finished sums arrive row by row. A sum of an exact pass is a result. A sum of a draft pass, one group's, is multiplied
by the group's scale and added to the partial result of its row, of which there is a memory with a word per row; with
the last group it is a result. Exact passes leave the memory alone. Nothing here ever waits: the sequencer only ends a
sum when its results will find room in the queue.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.data import ArrayLayout
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import SCALER_LATENCY, STEP_TO_RESULT, ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.job import result_layout, sum_layout
from speq.hardware.rtl.normalise import Normalise
from speq.hardware.rtl.operands import accumulator_layout
from speq.hardware.rtl.parts import Parts, inline
from speq.hardware.rtl.scaler import Scaler
from speq.hardware.rtl.streams import Queue


def queue_depth(array: ArrayParameters) -> int:
    """Results that can be under way or waiting, so that a taker who never stalls never makes a sum wait."""
    return array.pe_latency + STEP_TO_RESULT + 1 + 2 * array.rows


class OutputEdge(wiring.Component):
    """``ends`` announces, in the cycle in which its row 0 is at ``sums``, the sum that ``sum`` describes."""

    def __init__(self, array: ArrayParameters, accumulator: AccumulatorParameters, parts: Parts = inline) -> None:
        self._array, self._accumulator, self._parts = array, accumulator, parts
        super().__init__(
            {
                "ends": In(1),
                "sum": In(sum_layout(array)),
                "sums": In(ArrayLayout(accumulator_layout(accumulator), array.columns)),
                "results": Out(stream.Signature(result_layout(array))),
                "taken": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array = self._array
        kept, current = Signal(sum_layout(array)), Signal(sum_layout(array))
        row, kept_row = Signal(range(array.rows)), Signal(range(array.rows + 1))
        busy = Signal()
        m.d.comb += [
            current.eq(Mux(self.ends, self.sum, kept)),
            row.eq(Mux(self.ends, 0, kept_row)),
            busy.eq(self.ends | (kept_row < kept.rows)),
        ]
        with m.If(self.ends):
            m.d.sync += kept.eq(self.sum)
        with m.If(busy):
            m.d.sync += kept_row.eq(row + 1)

        m.submodules.partial = partial = Memory(shape=32 * array.columns, depth=array.rows, init=[])
        read, write = partial.read_port(), partial.write_port()
        # Stage by stage: normalised, multiplied (the partial result arrives), added, rounded.
        stages = [(busy, row, current)]
        for index in range(1 + SCALER_LATENCY):
            valid = Signal(name=f"valid_{index}")
            place = Signal(range(array.rows), name=f"row_{index}")
            about = Signal(sum_layout(array), name=f"sum_{index}")
            before = stages[-1]
            m.d.sync += [valid.eq(before[0]), place.eq(before[1]), about.eq(before[2])]
            stages.append((valid, place, about))
        m.d.comb += read.addr.eq(stages[1][1])

        results = Signal(ArrayLayout(32, array.columns))
        for column in range(array.columns):
            normalise = self._parts("normalise", lambda: Normalise(self._accumulator), clocked=False)
            scaler = self._parts("scaler", Scaler)
            m.submodules[f"normalise_{column}"], m.submodules[f"scaler_{column}"] = normalise, scaler
            addend = read.data.word_select(column, 32)
            m.d.comb += [
                normalise.accumulator.eq(self.sums[column]),
                scaler.draft.eq(stages[1][2].draft),
                scaler.scale.as_value().eq(stages[1][2].scales[column]),
                scaler.addend.as_value().eq(Mux(stages[2][2].begins, 0, addend)),
                results[column].eq(scaler.result),
            ]
            m.d.sync += scaler.sum.as_value().eq(normalise.float32)

        valid, place, about = stages[-1]
        m.d.comb += [
            write.addr.eq(place),
            write.data.eq(results),
            write.en.eq(valid & about.draft),
        ]
        self._queue(m, results, valid & about.final, place, about)
        return m

    def _queue(self, m: Module, results: Value, valid: Value, place: Value, about: Value) -> None:
        """Results to the output queue, zeros in columns that the matrix does not have."""
        m.submodules.queue = queue = Queue(result_layout(self._array), queue_depth(self._array))
        payload = queue.input.payload
        for column in range(self._array.columns):
            m.d.comb += payload.results[column].eq(Mux(about.columns > column, results[column], 0))
        m.d.comb += [
            payload.columns.eq(about.columns),
            payload.last.eq(about.ends & (place + 1 == about.rows)),
            queue.input.valid.eq(valid),
            self.taken.eq(self.results.valid & self.results.ready),
        ]
        wiring.connect(m, queue.output, wiring.flipped(self.results))
