"""Logits against transformers, for every family, option and RoPE variant that speq supports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from speq.backends.reference.step import ReferenceStep
from speq.graph.step import chain
from speq.limits import PAGE
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
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 100,
}
MIXED = ["sliding_attention", "attention", "sliding_attention"]
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
    "llama yarn no factor": {"model_type": "llama", "rope_scaling": {**YARN, "factor": None}},
    "llama yarn original beside": {
        "model_type": "llama",
        "original_max_position_embeddings": 200,
        "rope_scaling": YARN,
    },
    "llama yarn no original": {"model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "llama yarn below one": {"model_type": "llama", "rope_scaling": {**YARN, "factor": 0.5}},
    "llama yarn one mscale": {"model_type": "llama", "rope_scaling": {**YARN, "mscale": 2.0, "beta_fast": 0}},
    "llama yarn null truncate": {"model_type": "llama", "rope_scaling": {**YARN, "truncate": None}},
    "llama yarn backward ramp": {"model_type": "llama", "rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 32}},
    "llama yarn tiny original": {
        "model_type": "llama",
        "rope_scaling": {**YARN, "original_max_position_embeddings": 2},
    },
    "llama linear below one": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 0.5}},
    "llama longrope": {"model_type": "llama", "rope_scaling": LONGROPE},
    "llama longrope attention factor": {
        "model_type": "llama",
        "rope_scaling": {**LONGROPE, "factor": 3.0, "attention_factor": 0.8},
    },
    "llama longrope factor": {"model_type": "llama", "rope_scaling": {**LONGROPE, "factor": 3.0}},
    "llama proportional": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.7, "factor": 2.0},
    },
    "llama proportional beside": {
        "model_type": "llama",
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_type": "proportional"},
    },
    "llama both spellings": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "rope_scaling": YARN,
    },
    "llama both spellings, other way": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 3.0},
        "rope_scaling": {"rope_theta": 700.0},
        "rope_theta": 90.0,
    },
    "llama empty rope_scaling": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0},
        "rope_scaling": {},
        "rope_theta": 90.0,
    },
    "llama both kinds": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 3.0},
    },
    "llama factor without type": {"model_type": "llama", "rope_scaling": {"factor": 3.0}},
    "llama feed-forward biases": {"model_type": "llama", "mlp_bias": True},
    "llama all biases": {"model_type": "llama", "mlp_bias": True, "attention_bias": True},
    "llama entries of others": {
        "model_type": "llama",
        "sliding_window": 5,
        "use_sliding_window": True,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.1,
        "attn_logit_softcapping": 1.0,
        "query_pre_attn_scalar": 4,
        "pretraining_tp": 2,
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral entries of others": {
        "model_type": "mistral",
        "sliding_window": None,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral layer types": {"model_type": "mistral", "sliding_window": 7, "layer_types": MIXED},
    "mistral both spellings": {
        "model_type": "mistral",
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "rope_scaling": YARN,
    },
    "mistral window": {"model_type": "mistral", "sliding_window": 7, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "qwen2 window": {"model_type": "qwen2", **QWEN_WINDOW},
    "qwen2 window off": {"model_type": "qwen2", **QWEN_WINDOW, "use_sliding_window": False},
    "qwen2 layer types": {"model_type": "qwen2", **QWEN_WINDOW, "layer_types": MIXED},
    "qwen2 wide heads": {"model_type": "qwen2", "head_dim": 24},
    "qwen2 both spellings": {
        "model_type": "qwen2",
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "rope_scaling": YARN,
    },
    "qwen2 yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3 biases": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "qwen3 layer types": {"model_type": "qwen3", "head_dim": 16, **QWEN_WINDOW, "layer_types": MIXED},
    "qwen3 both spellings": {
        "model_type": "qwen3",
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "rope_scaling": YARN,
    },
    "qwen3 window": {"model_type": "qwen3", "head_dim": 16, **QWEN_WINDOW},
}
IDS = [int(token) for token in np.random.default_rng(7).integers(0, 97, 48)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_logits_equal_transformers(tiny_model, name, dtype):
    """With a cache and matrices in float32, as transformers has them, so that only the order of additions differs."""
    tiny = tiny_model(dtype=dtype, **CONFIGS[name])
    program = build_program(model_config(tiny.config))
    shape = (1, program.layers, program.kv_heads, PAGE, program.head_dim)
    cache = SimpleNamespace(keys=np.zeros(shape, np.float32), values=np.zeros(shape, np.float32))
    step = ReferenceStep(program, tiny.widened(), cache, len(IDS))
    step.run(chain(np.array(IDS, dtype=np.int32), logits="all"))
    expected = tiny.logits(IDS)
    np.testing.assert_allclose(step.logits(), expected, rtol=0, atol=5e-5 * np.abs(expected).max())


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
