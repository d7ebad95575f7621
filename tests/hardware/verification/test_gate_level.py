"""Mapped netlists, simulated from the functions of their cells, give the bits of the golden model."""

from __future__ import annotations

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.hardware.e3m0 import TOPS, bin_exponents
from speq.hardware.golden.decoder import decode
from speq.hardware.golden.row_edge import row_operands, row_words
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.decoder import Decoder
from speq.hardware.synthesis.flow import LIBRARIES, NEUTRAL, synthesise
from speq.hardware.synthesis.gate_level import GateSimulator, compile_function
from speq.hardware.synthesis.table import VARIANTS
from speq.hardware.testbench.operations import Operations, accumulator_words, cover, golden_sums, random_operations

PARAMETERS = AccumulatorParameters()
EVERY = np.arange(65536, dtype=np.uint16)


def check(coverage, netlist, operations, variant):
    """Run an element's core on operations and compare every cycle with the golden model."""
    cycles, elements = operations.weights.shape
    simulator = GateSimulator(netlist, elements)
    rows = row_words(row_operands(operations.activations, operations.enable, operations.draft, operations.first))
    seen = []
    for cycle in range(cycles + variant.LATENCY):
        last = min(cycle, cycles - 1)
        outputs = simulator.step({"row": rows[last], "weights": operations.weights[last].astype(np.int64)})
        seen.append(outputs["accumulator"])
    for cycle, state in enumerate(golden_sums(operations, PARAMETERS)):
        np.testing.assert_array_equal(seen[cycle + variant.LATENCY], accumulator_words(state, PARAMETERS))
    cover(coverage, variant.__name__, operations)


@pytest.fixture(scope="module")
def p3():
    return synthesise(VARIANTS["P3"](PARAMETERS), NEUTRAL)


@pytest.mark.parametrize("lane", [0, *(pytest.param(lane, marks=pytest.mark.slow) for lane in (1, 2, 3))])
def test_every_draft_product(hardware_coverage, p3, lane):
    """65,536 activations times 16 codes in a lane, the others with activations of zero and any code."""
    rng = np.random.default_rng(lane)
    shape = (16, 65536)
    activations = np.zeros((*shape, 4), np.uint16)
    activations[..., lane] = EVERY
    others = rng.integers(0, 1 << 16, shape)
    weights = (others & ~(15 << 4 * lane)) | np.arange(16)[:, None] << 4 * lane
    yes = np.ones(shape, np.bool_)
    check(hardware_coverage, p3, Operations(activations, weights.astype(np.uint16), yes, yes, yes), VARIANTS["P3"])


def test_interleaved_operations(hardware_coverage, p3):
    check(hardware_coverage, p3, random_operations(np.random.default_rng(1), 60, 2048, drafts=True), VARIANTS["P3"])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("library", [*LIBRARIES, NEUTRAL])
def test_every_element_in_every_library(hardware_coverage, name, library):
    if library in LIBRARIES and not LIBRARIES[library].exists():
        pytest.skip(f"Debian's package qflow-tech-{library} is not installed")
    variant = VARIANTS[name]
    netlist = synthesise(variant(PARAMETERS), library)
    check(hardware_coverage, netlist, random_operations(np.random.default_rng(2), 200, 4096, variant.DRAFTS), variant)


def test_every_word_through_the_decoder():
    """All words of 16 bits with the table of every finest exponent."""
    simulator = GateSimulator(synthesise(Decoder(), NEUTRAL), 65536)
    words = EVERY.astype(np.int64)
    codes, residuals = words >> 12, words & 0xFFF
    for top in TOPS:
        exponents = bin_exponents(top)
        table = sum(int(exponent) << 5 * c for c, exponent in enumerate(exponents))
        outputs = simulator.step({"code": codes, "residual": residuals, "exponents": np.full(65536, table)})
        expected = decode(codes.astype(np.uint8), residuals.astype(np.uint16), exponents)
        np.testing.assert_array_equal(outputs["weight"], expected)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("(!(A B))", lambda a, b, c: not (a and b)),
        ("(!((A+B) C))", lambda a, b, c: not ((a or b) and c)),
        ("((A^B)^C)", lambda a, b, c: a ^ b ^ c),
        ("(!((C A) + (!C B)))", lambda a, b, c: not (a if c else b)),
        ("A' & B | C", lambda a, b, c: (not a and b) or c),
        ("!A*B^C", lambda a, b, c: not a and (b ^ c)),
    ],
)
def test_functions_of_cells(text, meaning):
    function = compile_function(text)
    rows = np.arange(8, dtype=np.uint64)
    pins = {pin: (rows >> np.uint64(i) & np.uint64(1)) * np.uint64(0xFFFFFFFFFFFFFFFF) for i, pin in enumerate("ABC")}
    got = function(pins) & np.uint64(1)
    assert got.tolist() == [int(meaning(row & 1, row >> 1 & 1, row >> 2 & 1)) for row in range(8)]


def test_functions_that_are_not():
    with pytest.raises(SpeqError, match=r"cannot read the Liberty function 'A\)'"):
        compile_function("A)")


def test_toggles_are_counted(p3):
    """Nothing moves while operands stay; the weight's ports move when it alternates, in every element, every cycle."""
    simulator = GateSimulator(p3, 100)
    zeros, ones = np.zeros(100, np.int64), np.full(100, 0xFFFF)
    for _ in range(5):
        simulator.step({"row": zeros, "weights": zeros})
    assert simulator.toggles.sum() == 0
    for cycle in range(6):
        simulator.step({"row": zeros, "weights": ones if cycle % 2 == 0 else zeros})
    assert simulator.toggles[p3.inputs["weights"]].tolist() == [600] * 16
