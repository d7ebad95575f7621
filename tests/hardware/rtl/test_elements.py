"""Processing elements in Amaranth's simulator: the bits of the golden model, whatever the operations are."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Module, Value
from amaranth.sim import Simulator

from speq.hardware.golden.pe import to_float32
from speq.hardware.golden.row_edge import row_operands, row_words
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.element import ProcessingElement
from speq.hardware.rtl.normalise import Normalise
from speq.hardware.rtl.row_edge import RowEdge
from speq.hardware.synthesis.table import VARIANTS
from speq.hardware.testbench.operations import accumulator_words, cover, golden_sums, random_operations

FORMATS = [
    AccumulatorParameters(),
    AccumulatorParameters(normalise=True),
    AccumulatorParameters(0, 1, "truncate"),
    AccumulatorParameters(9, 3, "truncate", normalise=True),
    AccumulatorParameters(24, 6),
]


def simulate(design, inputs, outputs, cycles):
    """Values of the outputs in each cycle; ``inputs`` are pairs of a signal and its values by cycle."""
    seen = []

    async def testbench(context):
        for cycle in range(cycles):
            for signal, values in inputs:
                context.set(signal, int(values[min(cycle, len(values) - 1)]))
            seen.append([context.get(output) for output in outputs])
            await context.tick()

    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen


def drive(design, operations):
    """Pairs of the signals of an element or an edge and one element's operations."""
    pairs = [(design.enable, operations.enable[:, 0]), (design.draft, operations.draft[:, 0])]
    pairs.append((design.first, operations.first[:, 0]))
    packed = (operations.activations[:, 0].astype(object) << [0, 16, 32, 48]).sum(axis=1)
    return [*pairs, (Value.cast(design.activations), packed)]


def check_element(coverage, variant, parameters, cycles, seed):
    operations = random_operations(np.random.default_rng(seed), cycles, 1, variant.DRAFTS)
    top = Module()
    top.submodules.element = element = ProcessingElement(parameters, variant)
    top.submodules.normalise = normalise = Normalise(parameters)
    top.d.comb += normalise.accumulator.eq(element.accumulator)
    seen = simulate(
        top,
        [*drive(element, operations), (element.weights, operations.weights[:, 0])],
        [Value.cast(element.accumulator), normalise.float32],
        cycles + element.LATENCY,
    )
    for cycle, state in enumerate(golden_sums(operations, parameters)):
        expected = [int(accumulator_words(state, parameters)[0]), int(to_float32(state, parameters)[0])]
        assert seen[cycle + element.LATENCY] == expected, cycle
    cover(coverage, variant.__name__, operations)


@pytest.mark.parametrize("name", VARIANTS)
def test_element_is_the_golden_model(hardware_coverage, name):
    check_element(hardware_coverage, VARIANTS[name], FORMATS[0], 150, seed=0)


@pytest.mark.parametrize("parameters", FORMATS[1:], ids=str)
def test_every_kind_of_accumulator(hardware_coverage, parameters):
    check_element(hardware_coverage, VARIANTS["P3"], parameters, 100, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", FORMATS, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_many_operations(hardware_coverage, name, parameters):
    check_element(hardware_coverage, VARIANTS[name], parameters, 400, seed=2)


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_edge_of_a_row_unpacks_and_aligns(lanes):
    operations = random_operations(np.random.default_rng(3), 1000, 1, lanes == 4)
    edge = RowEdge(lanes)
    seen = simulate(edge, drive(edge, operations), [Value.cast(edge.row)], 1001)
    fields = row_operands(operations.activations, operations.enable, operations.draft, operations.first)
    if lanes == 1:
        fields["significands"][..., 1:] = fields["negative"][..., 1:] = 0
    assert [word for (word,) in seen[1:]] == row_words(fields)[:, 0].tolist()
