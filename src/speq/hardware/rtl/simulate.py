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
from speq.hardware.verification.bench import Bench, Stall


def job_bits(memory: Memory) -> list[int]:
    """The jobs of a memory as payloads of the stream of jobs."""
    return [Value.cast(JOB.const(job)).value for job in memory.jobs]


def simulate(
    products: Sequence[Product],
    array: ArrayParameters,
    accumulator: AccumulatorParameters,
    core: type[Core],
    *,
    stalls: Mapping[str, Stall] | None = None,
    memory: Memory | None = None,
    limit: int = 100_000,
    waveform: Path | None = None,
) -> Bench:
    """Run products one after the other, queued without a pause; the bench holds results and cycles.

    ``memory`` replaces what :func:`speq.hardware.golden.memory.store` makes of the products. Raises AssertionError if
    the last result has not come after ``limit`` cycles.
    """
    design = Accelerator(array, accumulator, core)
    memory = memory or store(products, array)
    bench = Bench(memory, job_bits(memory), array, stalls)
    inputs, outputs = ports(design)

    async def testbench(context: SimulatorContext) -> None:
        shown: dict[str, int] = {}
        while not bench.done:
            assert bench.cycle < limit, f"no last result after {limit} cycles"
            for name, value in bench.inputs().items():
                if shown.get(name) != value:
                    context.set(inputs[name], value)
                    shown[name] = value
            _, _, *values = await context.tick().sample(*outputs.values())
            bench.observe(dict(zip(outputs, values, strict=True)))

    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    with simulator.write_vcd(str(waveform)) if waveform else nullcontext():
        simulator.run()
    return bench


def ports(design: wiring.Component) -> tuple[dict[str, Value], dict[str, Value]]:
    """Inputs and outputs of a component as plain values, by the names that they have in Verilog."""
    found: tuple[dict[str, Value], dict[str, Value]] = {}, {}
    for path, member, value in design.signature.flatten(design):
        found[member.flow is wiring.Out]["__".join(map(str, path))] = Value.cast(value)
    return found
