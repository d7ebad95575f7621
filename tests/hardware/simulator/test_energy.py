"""Energy of single layers, reckoned by hand from the file's constants."""

from __future__ import annotations

import pytest

from speq.hardware.simulator.machine import Machine
from speq.hardware.simulator.passes import PassSpec, Simulator

PE, READ, WRITE, DRAM, VECTOR = 0.77 * 1.5, 0.0415 * 8, 0.0554 * 8, 18.75 * 8, 1.155  # pJ per cycle, byte, operation
LEAKAGE = 1024 * 0.317  # mW, which at 1 GHz are pJ per cycle


def product(accelerator, tokens, inputs, outputs, draft=False):
    machine = Machine(accelerator)
    one = accelerator.passes.draft if draft else accelerator.passes.exact
    return machine, machine.linear(tokens, inputs, outputs, one.linear, one)


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_a_product_of_16_bit_weights(accelerator, tokens):
    inputs, outputs = 1024, 960  # 10 blocks of the 96 columns
    machine, cost = product(accelerator("fp16"), tokens, inputs, outputs)
    weights, taken, given = 2 * inputs * outputs, 2 * tokens * inputs, 2 * tokens * outputs
    blocks = -(-tokens // 8)
    idle = cost.compute * machine.pes - tokens * inputs * outputs
    assert cost.pe_energy == pytest.approx((tokens * inputs * outputs + 0.1 * idle) * PE)
    # Weights are written once and read for each 8 tokens, inputs read for each 96 outputs, outputs written.
    reads = (weights * blocks + taken * 10) * READ
    assert cost.sram_energy == pytest.approx(reads + (weights + taken + given) * WRITE)
    assert cost.dram_energy == pytest.approx(weights * DRAM)
    assert cost.static_energy == pytest.approx(cost.cycles * LEAKAGE)
    assert cost.vector_energy == 0


def test_a_draft_scales_every_group(accelerator):
    _, cost = product(accelerator("speq"), 1, 1024, 960, draft=True)
    groups = 1024 // 64 * 960
    assert cost.vector_energy == pytest.approx(2 * groups * VECTOR)
    assert cost.dram_energy == pytest.approx((1024 * 960 / 2 + 2 * groups) * DRAM)
    four_products_per_cycle = 1024 * 960 / 4 * 1.04 * 1.5
    assert four_products_per_cycle < cost.pe_energy < 2 * four_products_per_cycle


def test_eight_bit_products_take_four_elements(accelerator):
    machine, cost = product(accelerator("tender"), 64, 512, 608)
    active = 4 * 64 * 512 * 608
    idle = cost.compute * machine.pes - active
    assert cost.pe_energy == pytest.approx((active + 0.1 * idle) * 0.0506 * 1.5)


def test_softmax_norms_and_activation_have_their_operations(accelerator, shape):
    one = shape("llama-3.1-8b")
    cost = Simulator(accelerator("fp16"), one).cost(PassSpec("step", 1, 99, 1))
    softmax = 5 * one.heads * 100
    values = 4 * 2 * one.hidden + 4 * one.intermediate
    assert cost.vector_energy == pytest.approx(one.layers * (softmax + values) * VECTOR)
    assert cost.vector == pytest.approx(one.layers * (softmax + values) / 64)


def test_background_power_of_the_memory_runs_all_the_time(accelerator):
    _, without = product(accelerator("fp16"), 1, 512, 960)
    _, cost = product(accelerator("fp16", memory__background_power=100.0), 1, 512, 960)
    assert cost.static_energy - without.static_energy == pytest.approx(cost.cycles * 100.0)
