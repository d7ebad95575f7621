"""Matrix products on the accelerator in Amaranth's simulator: for small arrays, with waveforms if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.sim import Simulator, SimulatorContext

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.golden.memory import Memory, Product, store
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.accelerator import Accelerator
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.job import JOB
from speq.hardware.testbench.bench import Bench, Stall


class Simulation:
    """An accelerator, compiled once for the simulator and reset before every run."""

    def __init__(self, array: ArrayParameters, accumulator: AccumulatorParameters, core: type[Core]) -> None:
        design = Accelerator(array, accumulator, core)
        self.array = array
        self._inputs, self._outputs = ports(design)
        self._bench: Bench | None = None
        self._limit = 0
        self._simulator = Simulator(design)
        self._simulator.add_clock(1e-6)
        self._simulator.add_testbench(self._testbench)

    def run(
        self,
        products: Sequence[Product],
        *,
        memory: Memory | None = None,
        stalls: Mapping[str, Stall] | None = None,
        limit: int = 100_000,
        waveform: Path | None = None,
    ) -> Bench:
        """Run products, queued without a pause; the bench holds results and cycles.

        ``memory`` replaces what :func:`speq.hardware.golden.memory.store` makes of the products; ``stalls`` are those
        of :class:`Bench`. Raises AssertionError if the last result has not come after ``limit`` cycles.
        """
        memory = memory or store(products, self.array)
        if self._bench is not None:
            self._simulator.reset()
        self._bench, self._limit = Bench(memory, job_bits(memory), self.array, stalls), limit
        with self._simulator.write_vcd(str(waveform)) if waveform else nullcontext():
            self._simulator.run()
        return self._bench

    async def _testbench(self, context: SimulatorContext) -> None:
        bench = self._bench
        assert bench is not None
        shown: dict[str, int] = {}
        while not bench.done:
            assert bench.cycle < self._limit, f"no last result after {self._limit} cycles"
            for name, value in bench.inputs().items():
                if shown.get(name) != value:
                    context.set(self._inputs[name], value)
                    shown[name] = value
            _, _, *values = await context.tick().sample(*self._outputs.values())
            bench.observe(dict(zip(self._outputs, values, strict=True)))


def job_bits(memory: Memory) -> list[int]:
    """The jobs of a memory as payloads of the stream of jobs."""
    return [Value.cast(JOB.const(job)).value for job in memory.jobs]


def ports(design: wiring.Component) -> tuple[dict[str, Value], dict[str, Value]]:
    """Inputs and outputs of a component as plain values, by the names that they have in Verilog."""
    found: tuple[dict[str, Value], dict[str, Value]] = {}, {}
    for path, member, value in design.signature.flatten(design):
        found[member.flow is wiring.Out]["__".join(map(str, path))] = Value.cast(value)
    return found
