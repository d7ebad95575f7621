"""Passes: bytes, products and time follow from the model's sizes; layers add up to the pass."""

from __future__ import annotations

import pytest

from speq.errors import SpeqError
from speq.hardware.simulator.cost import Cost
from speq.hardware.simulator.passes import PassSpec, Simulator

STEP = PassSpec("step", 1, 200, 1)
DRAFT = PassSpec("draft", 1, 200, 1)
VERIFY = PassSpec("verify", 8, 200, 8)


def weights_by_hand(shape):
    """Weights of all products, spelled out."""
    attention = shape.hidden * shape.head_size * (2 * shape.heads + 2 * shape.kv_heads)
    mlp = (3 if shape.gated else 2) * shape.hidden * shape.intermediate
    return shape.layers * (attention + mlp) + shape.hidden * shape.vocabulary


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-2-7b", 6.61), ("llama-2-13b", 12.85), ("llama-3.1-8b", 7.50), ("mistral-7b", 7.11), ("opt-6.7b", 6.65)],
)
def test_shapes_have_the_published_number_of_weights(shape, name, billions):
    assert shape(name).parameters() == weights_by_hand(shape(name))
    assert shape(name).parameters() / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b", "opt-6.7b", "qwen2.5-1.5b"])
def test_bytes_are_those_of_the_planes_and_the_cache(accelerator, shape, name):
    one = shape(name)
    simulator = Simulator(accelerator("speq"), one)
    exact, draft, verify = (simulator.cost(spec) for spec in (STEP, DRAFT, VERIFY))
    weights = weights_by_hand(one)
    assert exact.weight_bytes == verify.weight_bytes == 2 * weights
    assert (exact.scale_bytes, draft.weight_bytes) == (0, weights / 2)
    assert draft.scale_bytes == pytest.approx(weights / 64 * 2)
    entry = 2 * one.layers * one.kv_heads * one.head_size * 2  # bytes of keys and values of a token
    assert exact.kv_bytes == draft.kv_bytes == (201 + 1) * entry  # read with the new token, which is written
    assert verify.kv_bytes == (208 + 8) * entry


def test_products_are_those_of_the_model(accelerator, shape):
    one = shape("llama-3.1-8b")
    simulator = Simulator(accelerator("fp16"), one)

    def attention(tokens, length):
        return 2 * tokens * one.layers * one.heads * one.head_size * length

    assert simulator.cost(STEP).macs == weights_by_hand(one) + attention(1, 201)
    blocks = weights_by_hand(one) - one.hidden * one.vocabulary
    prefill = simulator.cost(PassSpec("prefill", 50, 0, 1))
    assert prefill.macs == 50 * blocks + one.hidden * one.vocabulary + attention(50, 50)


@pytest.mark.parametrize("spec", [STEP, DRAFT, VERIFY, PassSpec("prefill", 300, 7, 1)])
def test_layers_add_up_to_the_pass(accelerator, shape, spec):
    simulator = Simulator(accelerator("speq"), shape("smollm2-135m"))
    total = Cost()
    for layer in simulator.layers(spec):
        total.add(layer.cost, layer.times)
        cost = layer.cost
        assert cost.cycles >= max(cost.compute, cost.dram, cost.sram) * 0.999
        assert cost.compute_bound + cost.dram_bound + cost.sram_bound + cost.vector_bound == pytest.approx(cost.cycles)
    whole = simulator.cost(spec)
    assert whole.to_dict() == pytest.approx(total.to_dict())
    assert whole.stall == pytest.approx(whole.cycles - whole.compute - whole.vector)
    assert 0 < whole.utilisation <= 1


def test_memory_bound_time_is_bytes_over_bandwidth(accelerator, shape):
    """A machine without losses: a step takes what its bytes take, reckoned by hand."""
    one = shape("mistral-7b")
    cost = Simulator(accelerator("bitmod-fp16"), one).cost(STEP)
    assert cost.bound == "dram"
    assert cost.cycles == pytest.approx(cost.dram_bytes / 32, rel=1e-3)
    assert cost.dram_energy == pytest.approx(cost.dram_bytes * 8 * 18.75, rel=1e-6)


def test_a_share_of_the_blocks_can_be_wide(accelerator, shape):
    one = shape("llama-2-7b")
    bytes_at = {}
    for share in (0.0, 0.25, 1.0):
        simulator = Simulator(accelerator("olive", passes__exact__wide_share=share), one)
        bytes_at[share] = simulator.cost(STEP).weight_bytes
    blocks, head = one.parameters() - one.hidden * one.vocabulary, one.hidden * one.vocabulary
    assert bytes_at == pytest.approx({0.0: blocks + head, 0.25: 1.25 * blocks + head, 1.0: 2 * blocks + head})


def test_ports_and_overlap_bound_a_layer(accelerator, shape):
    one = shape("smollm2-135m")
    free = Simulator(accelerator("fp16"), one).cost(VERIFY)
    serial = Simulator(accelerator("fp16", buffers__overlap="none"), one).cost(VERIFY)
    assert (free.overlap > 0, serial.overlap) == (True, pytest.approx(0, abs=1e-6 * serial.cycles))
    from speq.hardware.simulator.config import Accelerator
    from speq.hardware.simulator.load import check

    data = accelerator("fp16").model_dump(exclude_none=True)
    data["buffers"]["weight_port"] = {"value": 1.0, "unit": "B/cycle", "source": "made up for a test"}
    narrow = Simulator(check(Accelerator, data, "test"), one).cost(VERIFY)
    assert narrow.bound == "sram"
    # One byte per cycle: every weight byte, and the cache of each block, in a cycle of its own.
    assert narrow.sram == pytest.approx(free.weight_bytes + 208 * 2 * one.layers * one.kv_heads * one.head_size * 2 * 3)


def test_drafts_need_draft_passes(accelerator, shape):
    with pytest.raises(SpeqError, match="fp16 has no draft passes"):
        Simulator(accelerator("fp16"), shape("smollm2-135m")).cost(DRAFT)
