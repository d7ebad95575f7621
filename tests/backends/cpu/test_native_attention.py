"""Native attention over contexts of several chunks: right, and the same bits however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest

from speq.backends.cpu import NativeStep, available_isas
from speq.backends.reference.step import ReferenceStep
from speq.formats import Spec, encode, from_float32
from speq.graph.step import chain
from speq.models.config import model_config
from speq.models.decoder import build_program, weight_shapes
from speq.runtime.kv import KVPool

CAPACITY = 700
SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "max_position_embeddings": CAPACITY,
}
MODELS = {
    "seven heads share a kv head": {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 72},
    "every head has its own": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128},
    "normalised heads": {
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "window": {
        "model_type": "mistral",
        "sliding_window": 300,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 20,
    },
}
IDS = np.random.default_rng(1).integers(0, 50, CAPACITY).astype(np.int32)
ISAS = available_isas()


@pytest.fixture(params=MODELS)
def model(request):
    config = model_config({"model_type": "llama", **SIZES, **MODELS[request.param]})
    rng = np.random.default_rng(0)
    weights = {}
    for key, shape in weight_shapes(config).items():
        if len(shape) == 1:
            weights[key] = np.ones(shape, dtype=np.float32)
        else:  # large enough for attention to prefer some positions
            values = rng.standard_normal(shape) * (2.5 if "_proj" in key else 1.0) / shape[1] ** 0.5
            weights[key] = encode(from_float32(values.astype(np.float32), "fp16"), Spec.default("nested", "fp16", 64))
    return build_program(config), weights


def logits(backend, model, sizes, **options):
    """Of all tokens, in passes of these sizes."""
    program, weights = model
    cache = KVPool(program.layers, program.kv_heads, program.head_dim, context=CAPACITY)
    step = backend(program, weights, cache, CAPACITY, **options)
    ends = np.cumsum(sizes)
    assert ends[-1] == CAPACITY
    parts = []
    for size, end in zip(sizes, ends, strict=True):
        step.run(chain(IDS[end - size : end], int(end) - size, logits="all"))
        parts.append(step.logits().copy())
    return np.concatenate(parts)


@pytest.mark.parametrize("isa", ISAS)
def test_logits_equal_the_reference(model, isa):
    expected = logits(ReferenceStep, model, [CAPACITY])
    for sizes in ([CAPACITY], [250] + [9] * 50):
        actual = logits(NativeStep, model, sizes, isa=isa, threads=2)
        assert np.linalg.norm(actual - expected) < 2e-4 * np.linalg.norm(expected)


def test_passes_threads_and_instruction_sets_change_no_bit(model):
    expected = logits(NativeStep, model, [CAPACITY], isa="portable", threads=1)
    for isa in ISAS:
        for threads, sizes in ((1, [1] * CAPACITY), (2, [255, 1, 1, 16, 17, 8, 214, 1, 187]), (3, [250] + [15] * 30)):
            assert np.array_equal(logits(NativeStep, model, sizes, isa=isa, threads=threads), expected), sizes
