"""What the hardware tests share: skipping without the extra, one compiled simulation per design, and a coverage table."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from speq.hardware.verification.coverage import Coverage

COVERAGE = Coverage()
needs_hardware = pytest.mark.skipif(importlib.util.find_spec("amaranth") is None, reason="needs speq[hardware]")


@pytest.fixture(scope="session")
def hardware_coverage() -> Coverage:
    """Counts what tests exercise; the table is printed at the end."""
    return COVERAGE


def pytest_terminal_summary(terminalreporter: Any) -> None:
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
    from speq.hardware.verification.bench import assemble

    def check(bench: Any, products: Sequence[Any], core: Any) -> None:
        shapes = [(len(product.activations), len(product.weights.codes)) for product in products]
        for product, result in zip(products, assemble(bench.results, shapes), strict=True):
            weights = product.weights
            expected = multiply(product.activations, weights, product.draft, AccumulatorParameters())
            np.testing.assert_array_equal(result, expected)
            words = weights.codes if product.draft else decode(weights.codes, weights.residuals, weights.table)
            COVERAGE.add(core.__name__, product.draft, product.activations, words)

    return check
