"""DRAM: bursts and rows counted address by address, the efficiency of streams and of short runs, refetches."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speq.hardware.simulator.config import Memory
from speq.hardware.simulator.load import load
from speq.hardware.simulator.memory import Dram, Traffic, fetches


@given(st.integers(1, 5000), st.integers(1, 40), st.sampled_from([16, 32, 64]))
def test_every_run_moves_whole_bursts(run, count, burst):
    touched = sum(len({address // burst for address in range(run)}) for _ in range(count))  # runs begin on a burst
    assert Traffic(run * count, run).bursts(burst) == pytest.approx(touched)
    assert Traffic(run * count, run).rows(8 * burst) == pytest.approx(count * math.ceil(run / (8 * burst)))


@pytest.mark.parametrize("name", ["ddr4-3200", "hbm2", "lpddr5-6400"])
def test_a_long_stream_loses_refresh_and_turnaround_only(name):
    memory = load(Memory, "memories", name)
    size = 1 << 30
    for frequency in (500.0, 1000.0):
        seconds = Dram(memory, frequency).cycles(Traffic(size, size)) / (frequency * 1e6)
        efficiency = size / seconds / (memory.peak_bandwidth.value * 1e9)
        assert efficiency == pytest.approx((1 - memory.refresh_loss.value) * (1 - memory.turnaround_loss.value))


def test_short_runs_are_limited_by_opening_rows():
    memory = load(Memory, "memories", "ddr4-3200")
    count = 10_000
    nanoseconds = Dram(memory, 1000.0).cycles(Traffic(64 * count, 64))
    # 16 banks, each of which can open a row every 45.75 ns: one run per 2.86 ns, where the bus would allow 2.5 ns.
    assert nanoseconds * (1 - 0.045) * (1 - 0.02) / count == pytest.approx(45.75 / 16)


def test_energy_counts_what_the_bus_moves():
    memory = load(Memory, "memories", "lpddr5-6400")
    dram = Dram(memory, 1000.0)
    read, write = Traffic(3200, 3200), Traffic(10 * 33, 33)  # 33 bytes move two bursts of 32
    assert dram.energy((read,), (write,)) == pytest.approx(3200 * 8 * 31.25 + 10 * 64 * 8 * 46.875)


@given(*(st.integers(1, 10_000) for _ in range(4)))
def test_refetching_takes_the_cheaper_order(weights, inputs, weight_buffer, input_buffer):
    again_weights, again_inputs = fetches(weights, inputs, weight_buffer, input_buffer)
    if weights <= weight_buffer or inputs <= input_buffer:
        assert (again_weights, again_inputs) == (1, 1)
        return
    blocks_of_inputs, blocks_of_weights = math.ceil(inputs / input_buffer), math.ceil(weights / weight_buffer)
    orders = {blocks_of_inputs * weights + inputs, blocks_of_weights * inputs + weights}
    assert again_weights * weights + again_inputs * inputs == min(orders)
