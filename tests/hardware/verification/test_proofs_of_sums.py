"""Proofs: sums end far enough apart, and switching the mode spoils neither a finished sum nor a draft's partial result.

The arithmetic is left open: processing elements, normalisers and scalers give whatever the solver likes, so what is
proven holds for every variant and every number.
"""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Assume, Module, Mux, Signal, Value

from speq.hardware.array_parameters import GROUP_SPACING, ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.job import JOB, sum_layout
from speq.hardware.rtl.output_edge import OutputEdge
from speq.hardware.rtl.scaler import Scaler
from speq.hardware.rtl.sequencer import Sequencer
from speq.hardware.rtl.tile import Tile
from speq.hardware.verification.formal import Harness, Refuted, free, prove

ARRAY = ArrayParameters(rows=3, columns=1, pe_latency=3, burst=8)
NARROW = AccumulatorParameters(fraction_bits=0)


class AnyCore(Core):
    """A processing element whose sum is anything, in every cycle."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += Value.cast(self.accumulator).eq(free(m, self.accumulator.shape(), "anything"))
        return m


class AnyScaler(Scaler):
    """A scaler whose result is anything, in every cycle."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.result.eq(free(m, 32, "anything"))
        return m


def given(**parts):
    """For the parts of these names those that are given, in order; the others are made."""
    left = {name: iter(these) for name, these in parts.items()}
    return lambda name, make, /, *, clocked=True: next(left[name]) if name in left else make()


def delayed(m, value, cycles, name):
    """What a value was some cycles ago."""
    for cycle in range(cycles):
        later = Signal(len(Value.cast(value)), name=f"{name}_{cycle}")
        m.d.sync += later.eq(value)
        value = later
    return value


def apart(m, ends, cycles):
    """Assume that sums end at least so many cycles apart."""
    since = Signal(range(cycles + 1), init=cycles)
    m.d.sync += since.eq(Mux(ends, 1, Mux(since == cycles, cycles, since + 1)))
    m.d.comb += Assume(~ends | (since == cycles))


def finished_sums(row, distance):
    """Whether what leaves a column is what the processing element held when its sum ended."""

    def build(m):
        cores = [AnyCore(NARROW) for _ in range(ARRAY.rows)]
        m.submodules.tile = tile = Tile(ARRAY, NARROW, AnyCore, given(core=cores))
        for name, shape in (("last", 1), ("draft", 1), ("first", 1), ("enable", ARRAY.rows)):
            m.d.comb += getattr(tile, name).eq(free(m, shape, name))
        apart(m, tile.last, distance)
        ended = delayed(m, tile.last, ARRAY.pe_latency, "ended")
        then = delayed(m, cores[row].accumulator, 1 + row, "then")
        with m.If(delayed(m, ended, 1 + row, "left")):
            m.d.comb += Assert(Value.cast(tile.sums[0]) == then)

    return Harness(build)


@pytest.mark.parametrize("row", range(ARRAY.rows))
def test_a_finished_sum_survives_whatever_follows(row):
    """For any operations in any modes after it, for ever; but not if the next sum ends while rows are still leaving."""
    depth = ARRAY.pe_latency + ARRAY.rows + 2
    prove(finished_sums(row, ARRAY.rows), depth)
    if row:
        with pytest.raises(Refuted):
            prove(finished_sums(row, row), depth)


def partial_results(distance):
    """Whether the scaler adds a group to what it returned for the same row's group before."""

    def build(m):
        scaler = AnyScaler()
        m.submodules.edge = edge = OutputEdge(ARRAY, NARROW, given(scaler=[scaler]))
        about, ends, row = free(m, sum_layout(ARRAY), "about"), free(m, 1, "ends"), free(m, 2, "row", constant=True)
        described = sum_layout(ARRAY)(about)
        m.d.comb += [
            Value.cast(edge.sum).eq(about),
            edge.ends.eq(ends),
            Assume(described.rows >= 1),
            Assume(described.rows <= ARRAY.rows),
            Assume(row < ARRAY.rows),
        ]
        apart(m, ends, distance)
        # When row `row` of a sum is at the edge, and what it then belongs to.
        now = delayed(m, ends, 0, "now")
        place, kept = Signal(range(ARRAY.rows + 1), init=ARRAY.rows), Signal(sum_layout(ARRAY))
        m.d.sync += place.eq(Mux(now, 1, Mux(place == ARRAY.rows, place, place + 1)))
        with m.If(now):
            m.d.sync += Value.cast(kept).eq(about)
        first_draft, first_begins = described.draft & (row == 0) & now, described.begins
        later = ~now & (place == row) & (row != 0) & (row < kept.rows) & kept.draft
        there, begins = first_draft | later, Mux(now, first_begins, kept.begins)
        # Two cycles later its addend is there, two more cycles later its result.
        known, result = Signal(), Signal(32)
        with m.If(delayed(m, there & ~begins, 2, "adds") & known):
            m.d.comb += Assert(Value.cast(scaler.addend) == result)
        with m.If(delayed(m, there, 4, "returns")):
            m.d.sync += [known.eq(1), result.eq(scaler.result)]

    return Harness(build)


def test_an_exact_pass_leaves_the_partial_results_of_a_draft():
    """For any sums of any modes in between, within 18 cycles of reset; but not if they end too soon."""
    prove(partial_results(max(ARRAY.rows, GROUP_SPACING)), 18, induction=False)
    with pytest.raises(Refuted):
        prove(partial_results(GROUP_SPACING - 1), 18, induction=False)


def test_sums_end_apart_and_results_find_room():
    """The sequencer keeps the distances that the array needs, and never ends a sum without room for its results, within
    14 cycles of reset."""
    results = 8

    def build(m):
        m.submodules.sequencer = sequencer = Sequencer(ARRAY, results)
        job = sequencer.jobs.payload
        m.d.comb += [
            Value.cast(job).eq(free(m, JOB, "job")),
            sequencer.jobs.valid.eq(free(m, 1, "job_valid")),
            *(Assume(size != 0) for size in (job.tokens, job.inputs, job.outputs)),
            *(
                getattr(sequencer, name).valid.eq(free(m, 1, name))
                for name in ("codes", "residuals", "scales", "activations")
            ),
        ]
        step = sequencer.step
        owed = Signal(range(results + 1))
        m.d.comb += [sequencer.taken.eq(free(m, 1, "taken") & (owed != 0)), Assert(owed <= results)]
        m.d.sync += owed.eq(owed + Mux(step.last & step.sum.final, step.sum.rows, 0) - sequencer.taken)

        since, needed = Signal(range(8), init=7), Signal(range(8))
        m.d.sync += since.eq(Mux(step.last, 1, Mux(since == 7, 7, since + 1)))
        with m.If(step.last):
            group = step.sum.draft & ~step.sum.final & (step.sum.rows < GROUP_SPACING)
            m.d.sync += needed.eq(Mux(group, GROUP_SPACING, step.sum.rows))
            m.d.comb += Assert(since >= needed)
            m.d.comb += [Assert(step.sum.rows >= 1), Assert(step.sum.rows <= ARRAY.rows)]

    prove(Harness(build), 14, induction=False)
