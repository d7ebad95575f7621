"""The emitted Verilog in Verilator, under cocotb: results equal the golden array, cycles equal the formula."""

from __future__ import annotations

import numpy as np
import pytest

from speq.hardware.array_parameters import ArrayParameters, Gemm
from speq.hardware.cycles import queue_cycles
from speq.hardware.golden.memory import OPERANDS, store
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.p0 import P0
from speq.hardware.rtl.p1 import P1
from speq.hardware.rtl.p2 import P2
from speq.hardware.rtl.p3 import P3
from speq.hardware.testbench.bench import RandomStall
from speq.hardware.verification.vectors import random_product, random_size
from speq.hardware.verification.verilator import CompiledArray

pytestmark = pytest.mark.slow

DESIGNS = [
    (ArrayParameters(rows=2, columns=3, burst=8), P0),
    (ArrayParameters(rows=1, columns=2, burst=8), P1),
    (ArrayParameters(rows=2, columns=1, burst=9), P2),
    (ArrayParameters(rows=5, columns=4, burst=8), P3),
]


@pytest.fixture(scope="module", params=DESIGNS, ids=lambda design: design[1].__name__)
def design(request, tmp_path_factory):
    array, core = request.param
    return CompiledArray(tmp_path_factory.mktemp(core.__name__), array, AccumulatorParameters(), core), core


def queues(rng, array, core, count):
    """Queues of one to four jobs of both modes, from single numbers to a few tiles in every direction."""
    jobs = [
        [
            random_size(rng, 3 * array.rows, 140, 3 * array.columns, drafts=core.DRAFTS)
            for _ in range(rng.integers(1, 5))
        ]
        for _ in range(count)
    ]
    shortest = [Gemm(rows, 1, 2 * array.columns, core.DRAFTS and draft) for rows in (1, array.rows) for draft in (0, 1)]
    return [*jobs, shortest]


def run(design, core, jobs, rng, stalls=None):
    products = [[random_product(rng, job, special=0.1) for job in queue] for queue in jobs]
    fill = [store(queue, design.array, lambda shape: rng.integers(0, 1 << 16, shape)) for queue in products]
    return products, design.run(products, memories=fill, stalls=stalls)


def test_results_and_cycles(design, check_bench, cycle_table):
    array, core = design
    rng = np.random.default_rng(1)
    jobs = queues(rng, array.array, core, 40)
    products, benches = run(array, core, jobs, rng)
    for queue, operands, bench in zip(jobs, products, benches, strict=True):
        check_bench(bench, operands, core)
        expected = queue_cycles(queue, array.array)
        cycle_table.append((core.__name__, array.array, queue, bench.cycles, expected))
        assert bench.cycles == expected, (array.array, queue)


def test_random_stalls(design, check_bench):
    array, core = design
    rng = np.random.default_rng(2)
    jobs = queues(rng, array.array, core, 40)
    names = ("jobs", "results", *OPERANDS, *(f"{operand}_requests" for operand in OPERANDS))
    stalls = [
        {name: RandomStall(int(rng.integers(1 << 30)), float(rng.choice([0, 0, 0.1, 0.4]))) for name in names}
        for _ in jobs
    ]
    products, benches = run(array, core, jobs, rng, stalls)
    for operands, bench in zip(products, benches, strict=True):
        check_bench(bench, operands, core)
