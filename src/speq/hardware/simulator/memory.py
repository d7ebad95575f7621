"""Time and energy of transfers to and from DRAM, and how often a product has to fetch its operands.

A transfer consists of contiguous runs. A run moves whole bursts and opens the rows it touches. A row that is read to
its end hides the opening of the next one in another bank; short runs do not, and are limited by how fast the banks can
open rows::

    seconds = max(bursts * burst / bandwidth, rows * row_cycle / banks) / (1 - refresh_loss) / (1 - turnaround_loss)

Sources: the row cycle limit is the usual bank model of DRAM simulators (Ramulator, DRAMsim3); which of the two terms
binds is what those simulators resolve request by request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from speq.hardware.simulator.config import Memory


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind, in contiguous runs of ``run`` bytes."""

    bytes: float
    run: float

    def bursts(self, burst: int) -> float:
        """Bursts moved: every run rounds up."""
        if not self.bytes:
            return 0.0
        return self.bytes / self.run * math.ceil(self.run / burst)

    def rows(self, row: int) -> float:
        """Rows opened: every run opens at least one."""
        if not self.bytes:
            return 0.0
        return self.bytes / self.run * math.ceil(self.run / row)


class Dram:
    """A memory in the clock of an accelerator: cycles and picojoules of transfers."""

    def __init__(self, memory: Memory, frequency: float) -> None:
        """``frequency`` is the accelerator's, in MHz."""
        cycle = 1e3 / frequency  # ns
        useful = (1 - memory.refresh_loss.value) * (1 - memory.turnaround_loss.value)
        self._burst, self._row = int(memory.burst.value), int(memory.row.value)
        self._burst_cycles = memory.burst.value / memory.peak_bandwidth.value / useful / cycle  # bytes per GB/s is ns
        self._row_cycles = memory.row_cycle.value / memory.banks.value / useful / cycle
        self._read, self._write = memory.read_energy.value * 8, memory.write_energy.value * 8  # pJ per byte
        self.latency = memory.latency.value / cycle
        self.background = memory.background_power.value * cycle  # mW times ns: pJ per cycle

    def cycles(self, *transfers: Traffic) -> float:
        """Cycles that the transfers keep the memory busy."""
        bursts = sum(one.bursts(self._burst) for one in transfers)
        rows = sum(one.rows(self._row) for one in transfers)
        return max(bursts * self._burst_cycles, rows * self._row_cycles)

    def energy(self, reads: tuple[Traffic, ...], writes: tuple[Traffic, ...]) -> float:
        """Picojoules, by bytes in whole bursts."""
        read = sum(one.bursts(self._burst) for one in reads) * self._burst
        written = sum(one.bursts(self._burst) for one in writes) * self._burst
        return read * self._read + written * self._write


def fetches(weights: float, inputs: float, weight_buffer: float, input_buffer: float) -> tuple[int, int]:
    """How often weights and inputs are fetched; all sizes in bytes.

    If neither fits its buffer, one of them stays and the other comes again for each part of it: whichever moves fewer
    bytes. Source: the rule of BitMoD's simulator (HPCA 2025).
    """
    if weights <= weight_buffer or inputs <= input_buffer:
        return 1, 1
    again_weights, again_inputs = math.ceil(inputs / input_buffer), math.ceil(weights / weight_buffer)
    if again_weights * weights + inputs < again_inputs * inputs + weights:
        return again_weights, 1
    return 1, again_inputs
