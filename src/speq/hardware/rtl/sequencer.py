"""Turns jobs and their operands into steps, one per cycle, and is the only part of the array that ever waits.

A step is issued when its operands are there and when nothing after it can be held up: the sum before has left its
processing elements by the time this one is finished, and the results will find room in the output queue. After that
everything moves on by itself, cycle by cycle. Hence a job may follow another one without a gap, in whatever modes, and
a stalled stream changes when things happen but not what.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import GROUP_SPACING, LANES, ArrayParameters
from speq.hardware.rtl.job import (
    INPUT_BITS,
    JOB,
    activation_layout,
    code_layout,
    residual_layout,
    scale_layout,
    step_layout,
)


class Sequencer(wiring.Component):
    """Jobs and operands in, steps out; ``taken`` says that a result left the output queue, which holds ``results``."""

    def __init__(self, array: ArrayParameters, results: int) -> None:
        self._array, self._results = array, results
        super().__init__(
            {
                "jobs": In(stream.Signature(JOB)),
                "codes": In(stream.Signature(code_layout(array))),
                "residuals": In(stream.Signature(residual_layout(array))),
                "scales": In(stream.Signature(scale_layout(array))),
                "activations": In(stream.Signature(activation_layout(array))),
                "step": Out(step_layout(array)),
                "taken": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array, step = self._array, self.step
        job, active = Signal(JOB), Signal()
        tokens_left, outputs_left = Signal.like(job.tokens), Signal.like(job.outputs)
        inputs_left = Signal(INPUT_BITS)
        group_left = Signal(range(1 << 7))  # steps of the group after this one
        element = Signal(range(LANES))  # of the activation beat, in an exact pass
        first, begins = Signal(init=1), Signal(init=1)
        spacing = Signal(range(max(array.rows, GROUP_SPACING)))  # cycles until a sum may end
        room = Signal(range(self._results + 1), init=self._results)

        rows, columns = Signal(range(array.rows + 1)), Signal(range(array.columns + 1))
        final, last, beat_ends, go = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            rows.eq(Mux(tokens_left > array.rows, array.rows, tokens_left)),
            columns.eq(Mux(outputs_left > array.columns, array.columns, outputs_left)),
            final.eq(inputs_left <= Mux(job.draft, LANES, 1)),
            last.eq(final | (job.draft & (group_left == 0))),
            beat_ends.eq(job.draft | final | (element == LANES - 1)),
            go.eq(
                active
                & self.codes.valid
                & (job.draft | self.residuals.valid)
                & self.activations.valid
                & (~last | ((spacing == 0) & (~job.draft | self.scales.valid)))
                & (~final | (rows <= room))
            ),
            self.codes.ready.eq(go & beat_ends),
            self.residuals.ready.eq(go & ~job.draft),
            self.activations.ready.eq(go & beat_ends),
            self.scales.ready.eq(go & last & job.draft),
        ]
        self._drive_step(m, job, inputs_left, element)
        m.d.comb += [
            step.enable.eq(Mux(go, (Const(1, array.rows + 1) << rows) - 1, 0)),
            step.draft.eq(job.draft),
            step.first.eq(first),
            step.last.eq(go & last),
            step.table.eq(job.table),
            step.sum.draft.eq(job.draft),
            step.sum.begins.eq(begins),
            step.sum.final.eq(final),
            step.sum.rows.eq(rows),
            step.sum.columns.eq(columns),
            step.sum.scales.eq(self.scales.payload),
        ]

        with m.If(go & last):
            apart = Mux(job.draft & ~final & (rows < GROUP_SPACING), GROUP_SPACING, rows)
            m.d.sync += spacing.eq(apart - 1)
        with m.Elif(spacing != 0):
            m.d.sync += spacing.eq(spacing - 1)
        m.d.sync += room.eq(room - Mux(go & final, rows, 0) + self.taken)

        row_block_ends, column_block_ends = go & final, go & final & (tokens_left <= array.rows)
        job_ends = column_block_ends & (outputs_left <= array.columns)
        m.d.comb += step.sum.ends.eq(job_ends)
        with m.If(go):
            m.d.sync += [
                first.eq(last),
                inputs_left.eq(inputs_left - Mux(job.draft, LANES, 1)),
                element.eq(Mux(beat_ends, 0, element + 1)),
                group_left.eq(Mux(last, _group_steps(job) - 1, group_left - 1)),
            ]
        with m.If(go & last):
            m.d.sync += begins.eq(final)
        with m.If(row_block_ends):
            m.d.sync += [inputs_left.eq(job.inputs), tokens_left.eq(tokens_left - array.rows)]
        with m.If(column_block_ends):
            m.d.sync += [tokens_left.eq(job.tokens), outputs_left.eq(outputs_left - array.columns)]
        with m.If(job_ends):
            m.d.sync += active.eq(0)

        m.d.comb += self.jobs.ready.eq(~active | job_ends)
        with m.If(self.jobs.valid & self.jobs.ready):
            following = self.jobs.payload
            m.d.sync += [
                active.eq(1),
                job.eq(following),
                tokens_left.eq(following.tokens),
                outputs_left.eq(following.outputs),
                inputs_left.eq(following.inputs),
                group_left.eq(_group_steps(following) - 1),
            ]
        return m

    def _drive_step(self, m: Module, job: Value, inputs_left: Value, element: Value) -> None:
        """Operands of the step: in a draft four inputs, zeros beyond the last; else one, in element 0."""
        step = self.step
        present = [inputs_left > lane for lane in range(LANES)]
        for row, beat in enumerate(self.activations.payload):
            for lane in range(LANES):
                exact = beat[element] if lane == 0 else Const(0, 16)
                m.d.comb += step.activations[row][lane].eq(Mux(job.draft, Mux(present[lane], beat[lane], 0), exact))
        for column, beat in enumerate(self.codes.payload):
            draft = Cat(Mux(present[lane], beat[lane], 0) for lane in range(LANES))
            exact = Cat(beat[element], self.residuals.payload[column])
            m.d.comb += step.weights[column].eq(Mux(job.draft, draft, exact))


def _group_steps(job: Value) -> Value:
    return Const(1, 1) << job.group_shift
