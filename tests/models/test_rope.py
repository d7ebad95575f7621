"""Rotary frequencies at the sizes of real models, against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from speq.models.rope import rotary_frequencies

LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama 3.1": {**LLAMA31, "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    "llama 3.2": {**LLAMA31, "factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    "qwen yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
    "yarn without factor": {
        "rope_type": "yarn",
        "factor": None,
        "original_max_position_embeddings": 8192,
        "rope_theta": 1e4,
    },
    "yarn not truncated": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "rope_theta": 1e4,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "truncate": False,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_equal_transformers(name, head_dim):
    entries = {"max_position_embeddings": 131072, "rope_parameters": VARIANTS[name]}
    hf_config = LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=dict(VARIANTS[name]),
    )
    expected, scale = ROPE_INIT_FUNCTIONS[VARIANTS[name]["rope_type"]](hf_config, device="cpu")
    frequencies = rotary_frequencies(entries, head_dim, 131072)
    np.testing.assert_allclose(frequencies.inv_freq, expected.numpy(), rtol=1e-5)  # transformers blends in float32
    assert frequencies.scale == pytest.approx(scale)


def test_default_frequencies():
    frequencies = rotary_frequencies({}, 4, 2048)
    assert frequencies.inv_freq == (1.0, float(np.float32(0.01)))
    assert (frequencies.scale, frequencies.context_length) == (1.0, 2048)
