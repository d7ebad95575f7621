"""Logits against transformers, for every family, option and RoPE variant that speq supports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from speq.kernels.reference import ReferenceStep
from speq.models.config import model_config
from speq.models.decoder import build_program
from speq.runtime.single import SingleSequence

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

CONFIGS = {
    "llama": {"model_type": "llama"},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama biases": {"model_type": "llama", "attention_bias": True},
    "llama wide heads": {"model_type": "llama", "head_dim": 40},
    "llama full attention heads": {"model_type": "llama", "num_key_value_heads": None},
    "llama one kv head": {"model_type": "llama", "num_key_value_heads": 1},
    "llama odd widths": {
        "model_type": "llama",
        "head_dim": 18,
        "hidden_size": 60,
        "intermediate_size": 101,
        "vocab_size": 131,
    },
    "llama theta": {"model_type": "llama", "rope_theta": 1000000.0},
    "llama new entries": {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 5000.0},
    "llama dynamic": {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama llama3": {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "llama yarn": {"model_type": "llama", "rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}},
    "llama yarn attention factor": {"model_type": "llama", "rope_scaling": {**YARN, "attention_factor": 0.7}},
    "llama yarn mscale": {
        "model_type": "llama",
        "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.4, "truncate": False},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral window": {"model_type": "mistral", "sliding_window": 7, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "qwen2 window": {"model_type": "qwen2", **QWEN_WINDOW},
    "qwen2 yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3 biases": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "qwen3 window": {"model_type": "qwen3", "head_dim": 16, **QWEN_WINDOW},
}
IDS = [int(token) for token in np.random.default_rng(7).integers(0, 97, 48)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_logits_equal_transformers(tiny_model, name, dtype):
    """With a cache and matrices in float32, as transformers has them, so that only the order of additions differs."""
    tiny = tiny_model(dtype=dtype, **CONFIGS[name])
    program = build_program(model_config(tiny.config))
    shape = (program.layers, program.kv_heads, len(IDS), program.head_dim)
    cache = SimpleNamespace(keys=np.zeros(shape, np.float32), values=np.zeros(shape, np.float32), capacity=len(IDS))
    step = ReferenceStep(program, tiny.widened(), cache, len(IDS))
    logits = step.run(np.array(IDS, dtype=np.int32), 0, logits="all")
    expected = tiny.logits(IDS)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_float16_cache_costs_little(tiny_model, name):
    tiny = tiny_model(**CONFIGS[name])
    engine = SingleSequence.of((tiny.config, tiny.widened()), backend="reference")
    expected = tiny.logits(IDS)
    np.testing.assert_allclose(engine.forward(IDS, logits="all"), expected, rtol=0, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_config_saved_by_transformers_means_the_same(tiny_model, name):
    tiny = tiny_model(**CONFIGS[name])
    assert model_config(tiny.model.config.to_dict()) == model_config(tiny.config)
