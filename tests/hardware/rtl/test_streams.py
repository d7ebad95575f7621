"""Queues and forks under random stalls at both ends: every payload once, in order."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.hardware.rtl.streams import Fork, Queue, get, put


def transfer(design, source, sinks, payloads, stalls):
    """What every sink received."""
    received = [[] for _ in sinks]
    simulator = Simulator(design)
    simulator.add_clock(1e-6)

    async def send(context):
        await put(context, source, payloads, stalls[0])

    simulator.add_testbench(send)
    for sink, stall, values in zip(sinks, stalls[1:], received, strict=True):

        async def receive(context, sink=sink, stall=stall, values=values):
            async for value in get(context, sink, stall):
                values.append(value)
                if len(values) == len(payloads):
                    return

        simulator.add_testbench(receive)
    simulator.run()
    return received


def random_stall(rng, share):
    return lambda: rng.random() < share


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    depth=st.integers(1, 5),
    payloads=st.lists(st.integers(0, 255), min_size=1, max_size=30),
    shares=st.tuples(*[st.sampled_from([0.0, 0.3, 0.8])] * 2),
    seed=st.integers(0, 1 << 20),
)
def test_a_queue_loses_and_repeats_nothing(depth, payloads, shares, seed):
    rng = random.Random(seed)
    queue = Queue(8, depth)
    stalls = [random_stall(rng, share) for share in shares]
    assert transfer(queue, queue.input, [queue.output], payloads, stalls) == [payloads]


@pytest.mark.parametrize("seed", range(5))
def test_a_fork_gives_everything_to_everyone(seed):
    rng = random.Random(seed)
    fork = Fork(8, 3)
    payloads = [rng.randrange(256) for _ in range(25)]
    stalls = [random_stall(rng, rng.choice([0, 0.5, 0.9])) for _ in range(4)]
    received = transfer(fork, fork.input, [fork.output_0, fork.output_1, fork.output_2], payloads, stalls)
    assert received == [payloads] * 3
