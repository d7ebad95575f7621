"""The bench of :mod:`speq.hardware.testbench.bench` as a cocotb test; :mod:`.verilator` runs it.

``SPEQ_BENCH`` names a pickled list of benches; they come back, finished, beside it, with the suffix ``.done``.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge
from cocotb.types import Logic

from speq.hardware.testbench.bench import Bench

LIMIT = 2_000_000
"""Cycles after which a bench has hung."""


class Outputs(Mapping[str, int]):
    """Output ports, read when they are looked at."""

    def __init__(self, dut: Any) -> None:
        self._dut = dut
        self._handles: dict[str, Any] = {}

    def __getitem__(self, name: str) -> int:
        if name not in self._handles:
            self._handles[name] = getattr(self._dut, name)
        value = self._handles[name].value
        return int(value) if isinstance(value, Logic) else int(value.to_unsigned())

    def __iter__(self) -> Any:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


@cocotb.test()  # type: ignore[untyped-decorator]
async def run(dut: Any) -> None:
    """All benches, each after a reset."""
    path = Path(os.environ["SPEQ_BENCH"])
    benches: list[Bench] = pickle.loads(path.read_bytes())
    Clock(dut.clk, 2, unit="ns").start()
    for bench in benches:
        dut.rst.value = 1
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        dut.rst.value = 0
        await _drive(dut, bench)
    path.with_suffix(".done").write_bytes(pickle.dumps(benches))


async def _drive(dut: Any, bench: Bench) -> None:
    """Inputs change after the rising edge; outputs are looked at half a cycle later, when they have settled."""
    shown: dict[str, int] = {}
    outputs = Outputs(dut)
    while not bench.done:
        assert bench.cycle < LIMIT, f"no last result after {LIMIT} cycles"
        for name, value in bench.inputs().items():
            if shown.get(name) != value:
                getattr(dut, name).value = value
                shown[name] = value
        await FallingEdge(dut.clk)
        bench.observe(outputs)
        await RisingEdge(dut.clk)
