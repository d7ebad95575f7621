"""The world around the accelerator, cycle by cycle: memories that answer requests, a queue of jobs, a taker of results.

Plain Python over integers, so that the Amaranth simulator and cocotb run the very same bench: in every cycle a
simulator applies :meth:`Bench.inputs`, and hands the outputs of that cycle to :meth:`Bench.observe`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.golden.memory import Memory

Stall = Callable[[], bool]
"""Whether an end of a stream holds it up in this cycle."""


def never() -> bool:
    """A stall that never happens."""
    return False


class RandomStall:
    """Holds a stream up in a share of the cycles, at random but for whole stretches of cycles as well."""

    def __init__(self, seed: int, share: float) -> None:
        self._rng, self._share, self._left = np.random.default_rng(seed), share, 0

    def __call__(self) -> bool:
        if self._left == 0 and self._rng.random() < self._share:
            self._left = int(self._rng.choice([1, 1, 2, 12]))
        stalled = self._left > 0
        self._left -= stalled
        return stalled


class ProtocolError(AssertionError):
    """A stream broke its rules."""


class Source:
    """The sending end of a stream: payloads in order, each offered until it is taken."""

    def __init__(self, stall: Stall = never) -> None:
        self.waiting: deque[int] = deque()
        self._stall, self._offered = stall, False

    def offer(self) -> tuple[int, int]:
        """Valid and payload in this cycle."""
        self._offered = bool(self.waiting) and (self._offered or not self._stall())
        return int(self._offered), self.waiting[0] if self._offered else 0

    def observe(self, ready: int) -> bool:
        """Whether the offer was taken."""
        if not (self._offered and ready):
            return False
        self.waiting.popleft()
        self._offered = False
        return True


class Sink:
    """The receiving end of a stream; it also checks that an offer stays until it is taken."""

    def __init__(self, name: str, stall: Stall = never) -> None:
        self._name, self._stall, self._ready, self._held = name, stall, False, -1

    def ready(self) -> int:
        """Whether it takes a payload in this cycle."""
        self._ready = not self._stall()
        return int(self._ready)

    def observe(self, valid: int, payload: int) -> bool:
        """Whether a payload was taken. Raises ProtocolError if an offer was changed or withdrawn."""
        if self._held >= 0 and not (valid and payload == self._held):
            raise ProtocolError(f"stream '{self._name}' changed or withdrew what it had offered")
        self._held = payload if valid and not self._ready else -1
        return bool(valid and self._ready)


@dataclass(frozen=True)
class Result:
    """One transfer of the results."""

    cycle: int
    values: list[int]
    columns: int
    last: bool


class Bench:
    """Memories, jobs and taker; ``stalls`` names streams that are held up: jobs, results, an operand, its requests."""

    def __init__(
        self,
        memory: Memory,
        jobs: Sequence[int],
        array: ArrayParameters,
        stalls: Mapping[str, Stall] | None = None,
    ) -> None:
        stalls = stalls or {}
        self._beats, self._columns = memory.beats, array.columns
        self._jobs = Source(stalls.get("jobs", never))
        self._jobs.waiting.extend(jobs)
        self._jobs_left = sum(all(job[size] for size in ("tokens", "inputs", "outputs")) for job in memory.jobs)
        self._data = {name: Source(stalls.get(name, never)) for name in memory.beats}
        requests = (f"{name}_requests" for name in memory.beats)
        self._sinks = {name: Sink(name, stalls.get(name, never)) for name in ("results", *requests)}
        self.cycle = 0
        self.began: list[int] = []
        """Cycles in which jobs were taken."""
        self.results: list[Result] = []
        self.requested: dict[str, int] = dict.fromkeys(memory.beats, 0)
        """Beats asked for, by operand."""

    @property
    def done(self) -> bool:
        """Whether every job has sent its last result."""
        return self._jobs_left == 0

    @property
    def cycles(self) -> int:
        """From the first job's transfer to the last result's, both counted."""
        return self.results[-1].cycle - self.began[0] + 1

    def inputs(self) -> dict[str, int]:
        """Values of all inputs in this cycle, by port name."""
        values = {f"{name}__ready": sink.ready() for name, sink in self._sinks.items()}
        for name, source in {"jobs": self._jobs, **self._data}.items():
            values[f"{name}__valid"], values[f"{name}__payload"] = source.offer()
        return values

    def observe(self, outputs: Mapping[str, int]) -> None:
        """Values of all outputs in this cycle, by port name; the cycle ends. Payloads are looked up only when valid."""
        if self._jobs.observe(outputs["jobs__ready"]):
            self.began.append(self.cycle)
        for name, source in self._data.items():
            source.observe(outputs[f"{name}__ready"])
        for name, sink in self._sinks.items():
            valid = outputs[f"{name}__valid"]
            payload = outputs[f"{name}__payload"] if valid else 0
            if sink.observe(valid, payload):
                if name == "results":
                    self._take_result(payload)
                else:
                    self._answer(name.removesuffix("_requests"), payload)
        self.cycle += 1

    def _answer(self, name: str, request: int) -> None:
        address, beats = request & 0xFFFFFFFF, request >> 32
        if not 0 < beats <= len(self._beats[name]) - address:
            raise ProtocolError(f"a request for {beats} beats from {address} on is outside of the {name}")
        self.requested[name] += beats
        self._data[name].waiting.extend(self._beats[name][address : address + beats])

    def _take_result(self, payload: int) -> None:
        width = self._columns
        values = [payload >> 32 * column & 0xFFFFFFFF for column in range(width)]
        last = payload >> 32 * width + width.bit_length() & 1
        columns = payload >> 32 * width & (1 << width.bit_length()) - 1
        self.results.append(Result(self.cycle, values, columns, bool(last)))
        self._jobs_left -= last


def assemble(results: Sequence[Result], shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint32]]:
    """Matrices [M, N] of these shapes from the results of their jobs, in order.

    Raises ProtocolError if there are more or fewer results, or if columns or ends are marked wrongly.
    """
    taken = deque(results)
    matrices = []
    for tokens, channels in shapes:
        width = len(results[0].values)
        matrix = np.zeros((tokens, channels), np.uint32)
        for first in range(0, channels, width):
            for token in range(tokens):
                if not taken:
                    raise ProtocolError("results are missing")
                result = taken.popleft()
                columns = min(width, channels - first)
                ends = first + width >= channels and token == tokens - 1
                if result.columns != columns or result.last != ends or any(result.values[columns:]):
                    raise ProtocolError(f"the result of token {token}, channel {first} has wrong marks: {result}")
                matrix[token, first : first + columns] = result.values[:columns]
        matrices.append(matrix)
    if taken:
        raise ProtocolError("there are more results than outputs")
    return matrices
