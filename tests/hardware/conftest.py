"""What the hardware tests share: one compiled simulation per design, and tables of what was covered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from speq.hardware.testbench.coverage import Coverage

COVERAGE = Coverage()
CYCLES: list[tuple[Any, ...]] = []


@pytest.fixture(scope="session")
def hardware_coverage() -> Coverage:
    """Counts what tests exercise; the table is printed at the end."""
    return COVERAGE


@pytest.fixture(scope="session")
def cycle_table() -> list[tuple[Any, ...]]:
    """Variant, array, jobs, cycles of the Verilog and of the formula; summed up at the end."""
    return CYCLES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if CYCLES:
        terminalreporter.section("cycles of queues of matrix products: Verilog in Verilator and formula")
        for design in dict.fromkeys(row[:2] for row in CYCLES):
            rows = [row for row in CYCLES if row[:2] == design]
            jobs = sum(len(row[2]) for row in rows)
            equal = sum(row[3] == row[4] for row in rows)
            terminalreporter.write_line(
                f"{design[0]} {design[1].rows:3} x {design[1].columns:<3} {len(rows):4} queues of {jobs:4} products, "
                f"{sum(row[3] for row in rows):9,} = {sum(row[4] for row in rows):9,} cycles, {equal} equal"
            )
    if COVERAGE.counts:
        terminalreporter.section("operands by PE variant, mode and kind")
        for line in COVERAGE.table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def simulation() -> Callable[..., Any]:
    """``simulation(array, core)``: an accelerator in Amaranth's simulator, compiled once per session."""
    from speq.hardware.parameters import AccumulatorParameters
    from speq.hardware.rtl.simulate import Simulation

    compiled: dict[Any, Simulation] = {}

    def make(array: Any, core: Any) -> Simulation:
        if (array, core) not in compiled:
            compiled[array, core] = Simulation(array, AccumulatorParameters(), core)
        return compiled[array, core]

    return make


@pytest.fixture(scope="session")
def check_bench() -> Callable[..., None]:
    """``check_bench(bench, products, core)``: results equal the golden model bit for bit; counted as covered."""
    from speq.hardware.golden.array import multiply
    from speq.hardware.golden.decoder import decode
    from speq.hardware.parameters import AccumulatorParameters
    from speq.hardware.testbench.bench import assemble

    def check(bench: Any, products: Sequence[Any], core: Any) -> None:
        shapes = [(len(product.activations), len(product.weights.codes)) for product in products]
        for product, result in zip(products, assemble(bench.results, shapes), strict=True):
            weights = product.weights
            expected = multiply(product.activations, weights, product.draft, AccumulatorParameters())
            np.testing.assert_array_equal(result, expected)
            words = weights.codes if product.draft else decode(weights.codes, weights.residuals, weights.table)
            COVERAGE.add(core.__name__, product.draft, product.activations, words)

    return check
