"""The machine a figure was measured on: processor, threads, kernels and read bandwidth."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from speq import _native
from speq.kernels.native import available_isas
from speq.processors import default_threads


@dataclass(frozen=True)
class Machine:
    processor: str
    threads: int
    isa: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.threads} threads, {self.isa}"


def this_machine() -> Machine:
    """Name the processor and the kernels it runs."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return Machine(name, default_threads(), available_isas()[0])


def read_bandwidth(threads: int | None = None, gigabytes: float = 2.0, repeats: int = 5) -> float:
    """Bytes per second that ``threads`` threads read from memory: the best of ``repeats`` passes over ``gigabytes``."""
    return _native.read_bandwidth(int(gigabytes * 1e9), threads or default_threads(), repeats)
