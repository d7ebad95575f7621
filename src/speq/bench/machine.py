"""The machine a figure was measured on: processor, threads, kernels, memory and read bandwidth."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speq import _native
from speq.backends.cpu import available_isas
from speq.processors import default_threads


@dataclass(frozen=True)
class Machine:
    processor: str
    threads: int
    isa: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.threads} threads, {self.isa}"


def this_machine(threads: int | None = None) -> Machine:
    """Name the processor and the kernels it runs, with ``threads`` threads or one for every core."""
    names = _values(Path("/proc/cpuinfo"), "model name") or [platform.processor() or platform.machine()]
    return Machine(names[0], threads or default_threads(), available_isas()[0])


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """What a report says of the machine: also its cores, memory in GB, system, and read bandwidth in GB/s."""
    machine = this_machine(threads)
    memory = _values(Path("/proc/meminfo"), "MemTotal")
    return {
        "processor": machine.processor,
        "cores": default_threads(),
        "threads": machine.threads,
        "isa": machine.isa,
        "memory_gb": round(int(memory[0].split()[0]) * 1024 / 1e9, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "bandwidth_gb_s": round(read_bandwidth(machine.threads, gigabytes=0.5) / 1e9, 1),
    }


def read_bandwidth(threads: int | None = None, gigabytes: float = 2.0, repeats: int = 5) -> float:
    """Bytes per second that ``threads`` threads read from memory: the best of ``repeats`` passes over ``gigabytes``."""
    return _native.read_bandwidth(int(gigabytes * 1e9), threads or default_threads(), repeats)


def _values(path: Path, key: str) -> list[str]:
    """The values of ``key`` in a file of ``key: value`` lines; none if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
