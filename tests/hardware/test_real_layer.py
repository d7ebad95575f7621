"""A layer of SmolLM2 on the accelerator's Verilog: real FP16 weights in e3m0, real activations, drafted and exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from speq.formats import draft_values, encode, to_float32
from speq.formats.spec import Spec
from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.cycles import queue_cycles
from speq.hardware.golden.array import Weights, gemm
from speq.hardware.golden.exact import error_bound, exact_sum
from speq.hardware.golden.memory import Product
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.p3 import P3
from speq.hardware.testbench.bench import assemble
from speq.hardware.verification.verilator import CompiledArray

pytestmark = pytest.mark.slow

ARRAY = ArrayParameters(rows=4, columns=16)
TOKENS = (504, 4317, 282, 4021, 314)
LAYER = "model.layers.0."


@pytest.fixture(scope="module")
def layer():
    """The query projection of the first layer, split, and the activations of five tokens that go into it."""
    from speq.checkpoint.sources.opening import open_source
    from speq.conversion.locate import locate
    from speq.errors import SpeqError

    try:
        source = open_source(locate("smollm2-135m-instruct"))
    except SpeqError as error:
        pytest.skip(f"the model cannot be had here: {error}")

    def read(name):
        kinds = {tensor.name: tensor.dtype for tensor in source.tensors}
        values = source.read(name)
        return to_float32(values, "fp16" if kinds[name] == "F16" else "bf16") if values.dtype == np.uint16 else values

    embedded = read("model.embed_tokens.weight")[list(TOKENS)].astype(np.float64)
    normed = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + source.config["rms_norm_eps"])
    activations = (normed * read(LAYER + "input_layernorm.weight")).astype(np.float16).view(np.uint16)
    bits = read(LAYER + "self_attn.q_proj.weight").astype(np.float16).view(np.uint16)
    return activations, encode(bits, Spec.default("e3m0", "fp16", 64)), bits


@pytest.fixture(scope="module")
def results(layer, tmp_path_factory, check_bench):
    """The layer drafted, exactly, and drafted for one token alone: bits of the Verilog, equal to the golden array's."""
    activations, tensor, _ = layer
    weights = Weights.from_split(tensor)
    design = CompiledArray(tmp_path_factory.mktemp("layer"), ARRAY, AccumulatorParameters(), P3)
    products = [Product(activations, weights, draft) for draft in (True, False)]
    products.append(Product(activations[2:3], weights, False))
    (bench,) = design.run([products])
    check_bench(bench, products, P3)
    assert bench.cycles == queue_cycles([gemm(p.activations, p.weights, p.draft) for p in products], ARRAY)
    return assemble(bench.results, [(len(p.activations), len(weights.codes)) for p in products])


def test_the_array_holds_the_exact_weights(layer):
    from speq.hardware.golden.decoder import decode

    _, tensor, bits = layer
    weights = Weights.from_split(tensor)
    assert np.array_equal(decode(weights.codes, weights.residuals, weights.table), bits)


def test_exact_results_are_within_the_proven_bound(layer, results):
    activations, _, bits = layer
    rng = np.random.default_rng(0)
    exact = results[1].view(np.float32)
    operands = np.zeros((activations.shape[1], 4), np.uint16)
    modes = np.zeros(len(operands), bool)
    for token, channel in zip(rng.integers(0, len(activations), 40), rng.integers(0, len(bits), 40), strict=True):
        operands[:, 0] = activations[token]
        truth = exact_sum(operands, bits[channel], modes)
        bound = error_bound(operands, bits[channel], modes, AccumulatorParameters())
        value = Fraction(float(exact[token, channel]))
        assert abs(value - truth) <= bound + abs(value) / 2**23
    double = activations.view(np.float16).astype(float) @ bits.view(np.float16).astype(float).T
    assert np.abs(exact - double).max() < 1e-4 * np.abs(double).max()


def test_draft_results_are_those_of_the_draft_values(layer, results):
    activations, tensor, _ = layer
    double = activations.view(np.float16).astype(float) @ draft_values(tensor).astype(float).T
    error = np.abs(results[0].view(np.float32) - double)
    assert error.max() < 2e-3 * np.abs(double).max()


def test_a_token_alone_has_the_same_bits(results):
    assert np.array_equal(results[2][0], results[1][2])
