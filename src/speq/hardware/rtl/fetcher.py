"""Walks one operand of a matrix product and asks for it burst by burst, ahead of the steps that use it.

The array computes column block by column block (outer loop), in each of them row block by row block (inner loop), in
each of these over all inputs. An operand is stored as *lines* of beats that are read from first to last: codes,
residuals and scales have a line per column block, read again for every row block; activations have a line per row
block, read again for every column block. Both modes read codes; only exact passes read residuals, only drafts scales.

The buffer holds two bursts: one is requested as soon as the other is all that is left.
"""

from __future__ import annotations

from enum import Enum

from amaranth.hdl import Module, Mux, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import LANES, ArrayParameters
from speq.hardware.rtl.job import ADDRESS_BITS, INPUT_BITS, JOB, OUTPUT_BITS, TOKEN_BITS, ceil_shift, request_layout
from speq.hardware.rtl.streams import Queue


class Operand(Enum):
    """An operand of the array, by the name of its address in a job."""

    CODES = "codes"
    RESIDUALS = "residuals"
    SCALES = "scales"
    ACTIVATIONS = "activations"


class Fetcher(wiring.Component):
    """Jobs in, requests out, requested beats in, buffered beats out in the order in which steps use them.

    Beats arrive in the order in which they were requested, with any delay.
    """

    def __init__(self, operand: Operand, shape: ShapeLike, array: ArrayParameters) -> None:
        self._operand, self._shape, self._array = operand, shape, array
        super().__init__(
            {
                "jobs": In(stream.Signature(JOB)),
                "requests": Out(stream.Signature(request_layout(array))),
                "data": In(stream.Signature(shape)),
                "beats": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array, job = self._array, self.jobs.payload
        m.submodules.buffer = buffer = Queue(self._shape, 2 * array.burst)
        wiring.connect(m, wiring.flipped(self.data), buffer.input)
        wiring.connect(m, buffer.output, wiring.flipped(self.beats))

        active = Signal()
        tokens, tokens_left = Signal(TOKEN_BITS), Signal(TOKEN_BITS)
        outputs_left = Signal(OUTPUT_BITS)
        length, left = Signal(INPUT_BITS), Signal(INPUT_BITS)  # beats of a line
        base, line, address = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        room = Signal(range(2 * array.burst + 1), init=2 * array.burst)  # beats that may still be requested

        request = self.requests.payload
        m.d.comb += [
            request.address.eq(address),
            request.beats.eq(Mux(left > array.burst, array.burst, left)),
            self.requests.valid.eq(active & (request.beats <= room)),
        ]
        asked = self.requests.valid & self.requests.ready
        taken = self.beats.valid & self.beats.ready
        m.d.sync += room.eq(room - Mux(asked, request.beats, 0) + taken)

        line_ends = asked & (left <= array.burst)
        inner_ends = line_ends & (tokens_left <= array.rows)
        job_ends = inner_ends & (outputs_left <= array.columns)
        next_line = Signal(ADDRESS_BITS)
        m.d.comb += next_line.eq(self._next_line(line, base, length, inner_ends))
        with m.If(asked):
            m.d.sync += [left.eq(left - request.beats), address.eq(address + request.beats)]
        with m.If(line_ends):
            m.d.sync += [
                left.eq(length),
                line.eq(next_line),
                address.eq(next_line),
                tokens_left.eq(Mux(inner_ends, tokens, tokens_left - array.rows)),
            ]
        with m.If(inner_ends):
            m.d.sync += outputs_left.eq(outputs_left - array.columns)
        with m.If(job_ends):
            m.d.sync += active.eq(0)

        m.d.comb += self.jobs.ready.eq(~active | job_ends)
        with m.If(self.jobs.valid & self.jobs.ready):
            start, beats = job[self._operand.value], self._line_length()
            m.d.sync += [
                active.eq(self._is_used()),
                tokens.eq(job.tokens),
                tokens_left.eq(job.tokens),
                outputs_left.eq(job.outputs),
                length.eq(beats),
                left.eq(beats),
                base.eq(start),
                line.eq(start),
                address.eq(start),
            ]
        return m

    def _line_length(self) -> Value:
        """Beats of a line of the job that begins."""
        job = self.jobs.payload
        fours = ceil_shift(job.inputs, LANES.bit_length() - 1)
        lengths = {Operand.RESIDUALS: job.inputs, Operand.SCALES: ceil_shift(fours, job.group_shift)}
        return lengths.get(self._operand, fours)

    def _is_used(self) -> Value:
        """Whether the job that begins reads this operand."""
        draft = self.jobs.payload.draft
        return {Operand.RESIDUALS: ~draft, Operand.SCALES: draft}.get(self._operand, Value.cast(1))

    def _next_line(self, line: Value, base: Value, length: Value, inner_ends: Value) -> Value:
        following = line + length
        if self._operand is Operand.ACTIVATIONS:
            return Value.cast(Mux(inner_ends, base, following))
        return Value.cast(Mux(inner_ends, following, line))
