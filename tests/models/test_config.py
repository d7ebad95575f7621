"""config.json: what is understood, and that everything else is refused by name."""

from __future__ import annotations

import pytest

from speq.errors import SpeqError
from speq.models.config import model_config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"model_type": "gemma3"}, r"'gemma3'.*llama, mistral, qwen2, qwen3"),
        ({"model_type": None, "architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM'"),
        ({"model_type": ["llama"]}, "llama"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' is '64'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 17}, "head_dim 17 is odd"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' is 'small'"),
        ({"rms_norm_eps": -1.0}, "'rms_norm_eps' is -1.0"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope'.*default, linear, dynamic, llama3, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "'factor' is 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' is '2'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "needs 'high_freq_factor'"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "high_freq_factor greater",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_theta": -1}, "'rope_theta' is -1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8, "layer_types": ["linear"] * 3},
            "linear",
        ),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention"] * 2,
            },
            "2 entries for 3 layers",
        ),
    ],
)
def test_refused_by_name(entries, named):
    with pytest.raises(SpeqError, match=named) as caught:
        model_config({**LLAMA, **entries})
    assert "\n" not in str(caught.value)


def test_entries_left_out_take_the_family_defaults():
    assert model_config(LLAMA).kv_heads == 4
    assert model_config({**LLAMA, "num_attention_heads": 16, "model_type": "mistral"}).kv_heads == 8
    assert model_config({**LLAMA, "model_type": "qwen3"}).head_dim == 128
    assert model_config({**LLAMA, "max_position_embeddings": None}).context_length == 2048


def test_layer_types_choose_the_windows():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    entries = {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8, "layer_types": kinds}
    assert model_config({**LLAMA, **entries}).windows == (8, None, 8)
    assert model_config({**LLAMA, **entries, "use_sliding_window": False}).windows == (None, None, None)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 512),
        ({"type": "linear", "factor": 4.0}, 512),
        ({"type": "dynamic", "factor": 4.0}, 512),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_context_length(scaling, context):
    assert model_config({**LLAMA, "rope_scaling": scaling}).context_length == context
