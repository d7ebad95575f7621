"""Proofs: streams keep their promises and lose nothing; requests never exceed the room for their answers."""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Assume, Mux, Signal, Value
from amaranth.lib import stream

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.rtl.fetcher import Fetcher, Operand
from speq.hardware.rtl.job import JOB
from speq.hardware.rtl.streams import Fork, Queue
from speq.hardware.verification.formal import Harness, Refuted, free, prove

WIDTH = 2


def stays(m, port, begun):
    """Assert that an offer on a stream stays until it is taken."""
    value = Value.cast(port.payload)
    held, payload = Signal(), Signal(len(value))
    m.d.sync += [held.eq(port.valid & ~port.ready), payload.eq(value)]
    with m.If(begun & held):
        m.d.comb += [Assert(port.valid), Assert(value == payload)]


def begun_after_reset(m):
    begun = Signal()
    m.d.sync += begun.eq(1)
    return begun


def follow_one(m, taken, value, given, result, limit):
    """Assert that any one payload, chosen by the solver as it enters, leaves unchanged after those ahead of it."""
    inside, ahead = Signal(range(limit + 1)), Signal(range(limit + 1))
    watching, watched = Signal(), Signal(len(value))
    choose = free(m, 1, "choose")
    m.d.sync += inside.eq(inside + taken - given)
    with m.If(~watching & choose & taken):
        m.d.sync += [watching.eq(1), watched.eq(value), ahead.eq(inside - given)]
    with m.If(watching & given):
        m.d.sync += ahead.eq(ahead - 1)
        with m.If(ahead == 0):
            m.d.comb += Assert(result == watched)
            m.d.sync += watching.eq(0)
    m.d.comb += [Assert(~given | (inside != 0)), Assert(inside <= limit)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_queue_keeps_its_promises(depth):
    """For every behaviour of both ends, within 10 cycles of reset."""

    def build(m):
        m.submodules.queue = queue = Queue(WIDTH, depth)
        m.d.comb += [
            queue.input.payload.eq(free(m, WIDTH, "payload")),
            queue.input.valid.eq(free(m, 1, "valid")),
            queue.output.ready.eq(free(m, 1, "ready")),
        ]
        taken, given = queue.input.valid & queue.input.ready, queue.output.valid & queue.output.ready
        stays(m, queue.output, begun_after_reset(m))
        follow_one(m, taken, queue.input.payload, given, queue.output.payload, depth)

    prove(Harness(build), 10, induction=False)


def test_a_fork_gives_every_payload_to_every_output():
    def build(m):
        m.submodules.fork = fork = Fork(WIDTH, 2)
        m.d.comb += [fork.input.payload.eq(free(m, WIDTH, "payload")), fork.input.valid.eq(free(m, 1, "valid"))]
        for index, output in enumerate((fork.output_0, fork.output_1)):
            m.d.comb += output.ready.eq(free(m, 1, f"ready_{index}"))
            stays(m, output, begun_after_reset(m))
            taken = fork.input.valid & fork.input.ready
            follow_one(m, taken, fork.input.payload, output.valid & output.ready, output.payload, 2)

    prove(Harness(build), 8, induction=False)


def test_a_broken_queue_is_found_out():
    """The same assertions refute a queue that forgets to wait."""

    def build(m):
        valid, payload = free(m, 1, "valid"), free(m, WIDTH, "payload")
        output = stream.Signature(WIDTH).create()
        m.d.sync += [output.valid.eq(valid), output.payload.eq(payload)]
        m.d.comb += output.ready.eq(free(m, 1, "ready"))
        stays(m, output, begun_after_reset(m))

    with pytest.raises(Refuted):
        prove(Harness(build), 6, induction=False)


@pytest.mark.parametrize("operand", [Operand.CODES, Operand.ACTIVATIONS])
def test_a_fetcher_asks_for_no_more_than_it_can_take(operand):
    """An offered request stays, at most two bursts are under way or waiting, and no answer ever finds a full buffer."""
    array = ArrayParameters(2, 2, burst=8)

    def build(m):
        m.submodules.fetcher = fetcher = Fetcher(operand, 1, array)
        requests, data, beats = fetcher.requests, fetcher.data, fetcher.beats
        owed, waiting = Signal(6), Signal(6)  # beats asked for that have not arrived, and beats in the buffer
        m.d.comb += [
            Value.cast(fetcher.jobs.payload).eq(free(m, JOB, "job")),
            fetcher.jobs.valid.eq(free(m, 1, "job_valid")),
            requests.ready.eq(free(m, 1, "request_ready")),
            data.valid.eq(free(m, 1, "data_valid") & (owed != 0)),
            beats.ready.eq(free(m, 1, "beat_ready")),
            Assume(fetcher.jobs.payload.tokens != 0),
            Assume(fetcher.jobs.payload.inputs != 0),
            Assume(fetcher.jobs.payload.outputs != 0),
        ]
        asked = Mux(requests.valid & requests.ready, requests.payload.beats, 0)
        arrived, left = data.valid & data.ready, beats.valid & beats.ready
        m.d.sync += [owed.eq(owed + asked - arrived), waiting.eq(waiting + arrived - left)]
        m.d.comb += [Assert(owed + waiting <= 2 * array.burst), Assert(~data.valid | data.ready)]
        with m.If(requests.valid):
            m.d.comb += [Assert(requests.payload.beats > 0), Assert(requests.payload.beats <= array.burst)]
        stays(m, requests, begun_after_reset(m))

    prove(Harness(build), 7, induction=False)
