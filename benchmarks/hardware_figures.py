"""Draws the figures of docs/hardware.md: python benchmarks/hardware_figures.py [DIRECTORY]

Block diagrams come from the elaborated design, waveforms from a simulation of it, which is checked against the golden
model as it runs.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from amaranth.hdl import UnusedElaboratable

from speq.hardware.array_parameters import ArrayParameters, Gemm
from speq.hardware.figures import draw_blocks, draw_waves, hierarchy, read_vcd
from speq.hardware.golden.array import multiply
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.accelerator import Accelerator
from speq.hardware.rtl.p3 import P3
from speq.hardware.rtl.parts import Collector
from speq.hardware.rtl.simulate import Simulation
from speq.hardware.testbench.bench import assemble
from speq.hardware.verification.vectors import random_product

ARRAY = ArrayParameters(rows=2, columns=2, burst=8)
JOBS = (Gemm(2, 3, 2, False), Gemm(2, 16, 2, True, 8), Gemm(1, 2, 2, False))
TOP = "bench.top."
CLOCK = TOP + "array.clk"
SIGNALS = {
    "job offered": "jobs__valid",
    "job taken": "jobs__ready",
    "codes: request": "codes_requests__valid",
    "codes: address": "codes_requests__payload.address",
    "codes: beat": "codes__valid",
    "residuals: beat": "residuals__valid",
    "scales: beat": "scales__valid",
    "step: rows": "step.enable",
    "step: draft": "step.draft",
    "step: first": "step.first",
    "step: last": "step.last",
    "sums captured": "array.tile.last_3",
    "result": "results__valid",
}


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/hardware")
    directory.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", UnusedElaboratable)  # the parts of the block diagram are only named
    accumulator = AccumulatorParameters()
    design = Accelerator(ArrayParameters(rows=8, columns=16), accumulator, P3, Collector())
    blocks = hierarchy(design, "accelerator, 8 x 16", leaves=("fork", "buffer", "queue"))
    (directory / "accelerator.svg").write_text(draw_blocks(blocks))

    rng = np.random.default_rng(0)
    products = [random_product(rng, job) for job in JOBS]
    with tempfile.TemporaryDirectory() as scratch:
        waveform = Path(scratch) / "waves.vcd"
        bench = Simulation(ARRAY, accumulator, P3).run(products, waveform=waveform)
        traces = read_vcd(waveform)
    for job, product, result in zip(
        JOBS, products, assemble(bench.results, [(j.tokens, j.outputs) for j in JOBS]), strict=True
    ):
        assert np.array_equal(result, multiply(product.activations, product.weights, job.draft, accumulator))
    rows = {label: TOP + name for label, name in SIGNALS.items()}
    (directory / "waves.svg").write_text(draw_waves(traces, rows, CLOCK, range(bench.cycle)))


if __name__ == "__main__":
    main()
