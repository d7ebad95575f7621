"""config.json: what is understood, and that everything else is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from speq.errors import SpeqError
from speq.models.config import model_config
from speq.models.rope import SUPPORTED

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"model_type": "gemma3"}, r"'gemma3'.*llama, mistral, qwen2, qwen3"),
        ({"model_type": None, "architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM'"),
        ({"model_type": ["llama"]}, "llama"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_act": None}, "hidden_act None"),
        ({"mlp_bias": "no"}, "'mlp_bias' is 'no'"),
        ({"attention_bias": 1}, "'attention_bias' is 1"),
        ({"tie_word_embeddings": "false"}, "'tie_word_embeddings' is 'false'"),
        ({"is_causal": False}, "is_causal"),
        ({"per_layer_config": {"1": {"num_key_value_heads": 1}}}, "per_layer_config"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is no model"),
        ({"architectures": ["LlamaForRewardModel"]}, "LlamaForRewardModel is no model"),
        ({"architectures": "LlamaForCausalLM"}, "'architectures' is 'LlamaForCausalLM'"),
        ({"quantization_config": "int4"}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' is '64'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 17}, "head_dim 17 is odd"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' is 'small'"),
        ({"rms_norm_eps": -1.0}, "'rms_norm_eps' is -1.0"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "'su'.*default, linear, dynamic, llama3, yarn, longrope"),
        ({"rope_scaling": {"type": "mrope"}}, "'mrope'"),
        ({"rope_scaling": {"type": "linear", "rope_type": None, "factor": 2.0}}, "rope type None"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "dynamic"}}, "'dynamic' needs 'factor'"),
        ({"rope_scaling": {"type": "yarn"}}, "'yarn' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "'factor' is 0"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "'factor' is None"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "'factor' is True"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "'factor' is 1000"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "'factor' is inf"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": "1"}}, "'attention_factor' is '1'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "false"}}, "'truncate' is 'false'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": "1", "mscale_all_dim": 1}}, "'mscale' is '1'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": [32]}}, r"'beta_fast' is \[32\]"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}, "original_max_position_embeddings": None},
            "'original_max_position_embeddings' is None",
        ),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "8 numbers in 'long_factor'"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": ["2"] * 8}},
            "'long_factor' is '2'",
        ),
        ({"rope_scaling": {"type": "proportional", "partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}},
            "settings of its own for full_attention",
        ),
        ({"rope_parameters": ["yarn"]}, r"rope_parameters is \['yarn'\]"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' is '2'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "needs 'high_freq_factor'"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "high_freq_factor greater",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_theta": -1}, "'rope_theta' is -1"),
        ({"rope_theta": "10000"}, "'rope_theta' is '10000'"),
        ({"rope_theta": None}, "'rope_theta' is None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 3}, "linear_attention"),
        ({"model_type": "qwen3", "layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3}, "no sliding_window is in force"),
        ({"layer_types": ["sliding_attention"] * 3, "sliding_window": 8}, "no sliding_window is in force"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 0}, "'sliding_window' is 0"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "28"},
            "'max_window_layers' is '28'",
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
        model_config({**LLAMA, "num_key_value_heads": 2, **entries})
    assert "\n" not in str(caught.value)


FAMILY_CONFIGS = [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config]


@pytest.mark.parametrize("family", FAMILY_CONFIGS, ids=lambda family: family.model_type)
@pytest.mark.parametrize(
    "missing",
    ["num_key_value_heads", "max_position_embeddings", "sliding_window", "head_dim", "rms_norm_eps", "rope_theta"],
)
def test_entries_left_out_take_the_defaults_of_transformers(family, missing):
    entries = {**LLAMA, "num_attention_heads": 32, "hidden_size": 256, "num_key_value_heads": 4, "head_dim": 16}
    entries |= {"rms_norm_eps": 1e-5, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}
    del entries["model_type"]
    entries = {key: value for key, value in entries.items() if key != missing}
    theirs, mine = family(**entries), model_config({"model_type": family.model_type, **entries})
    assert mine.kv_heads == theirs.num_key_value_heads
    assert mine.context_length == theirs.max_position_embeddings
    assert mine.norm_eps == theirs.rms_norm_eps
    assert mine.head_dim == (getattr(theirs, "head_dim", None) or 256 // 32)
    assert mine.rotary.inv_freq[1] == pytest.approx(theirs.rope_parameters["rope_theta"] ** (-2 / mine.head_dim))
    if family is not LlamaConfig:
        assert mine.windows[2] == theirs.sliding_window
    if family.model_type.startswith("qwen"):
        assert mine.windows[0] is None


def test_what_null_means():
    assert model_config({**LLAMA, "num_key_value_heads": None}).kv_heads == 4
    assert model_config({**LLAMA, "model_type": "qwen2", "num_key_value_heads": None}).kv_heads == 4
    assert model_config({**LLAMA, "max_position_embeddings": None}).context_length == 2048
    unlimited = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 4, "sliding_window": None}
    assert model_config(unlimited).windows == (None, None, None)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaModel", "MistralForCausalLM"])
def test_architectures_that_continue_a_text(name):
    assert model_config({**LLAMA, "architectures": [name]}) == model_config(LLAMA)


def test_layer_types_choose_the_windows():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    entries = {**LLAMA, "num_key_value_heads": 4, "sliding_window": 8, "layer_types": kinds}
    assert model_config({**entries, "model_type": "qwen3", "use_sliding_window": True}).windows == (8, None, 8)
    assert model_config({**entries, "model_type": "mistral"}).windows == (8, 8, 8)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 512),
        ({"type": "linear", "factor": 4.0}, 512),
        ({"type": "dynamic", "factor": 4.0}, 512),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({**LONGROPE, "original_max_position_embeddings": 100}, 100),
        ({**LONGROPE, "original_max_position_embeddings": 600}, 512),
        ({**LONGROPE, "original_max_position_embeddings": 100, "long_factor": [1.0] * 8}, 512),
    ],
)
def test_context_length(scaling, context):
    assert model_config({**LLAMA, "rope_scaling": scaling}).context_length == context


ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "short_factor", "long_factor", "full_attention",
)  # fmt: skip
KEYS = (
    *LLAMA, "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "architectures",
    "quantization_config", "per_layer_config", "is_causal", "rope_scaling", "rope_parameters", "rope_theta",
    "partial_rotary_factor", "original_max_position_embeddings",
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.just(10**400) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ROPE_KEYS), inner, max_size=3),
    max_leaves=6,
)
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(SUPPORTED)}, optional={key: VALUES | st.floats(0.5, 64) for key in ROPE_KEYS[2:]}
)


@settings(max_examples=300, deadline=None)
@given(
    model_type=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    entries=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
    rope=st.none() | ROPE,
)
def test_whatever_stands_in_an_entry_is_understood_or_refused_in_one_line(model_type, entries, rope):
    given = {**LLAMA, "num_key_value_heads": 2, "rope_scaling": rope, **entries, "model_type": model_type}
    try:
        config = model_config(given)
    except SpeqError as error:
        lines = str(error).splitlines()
    else:
        lines = ["understood"]
        assert np.isfinite([*config.rotary.inv_freq, config.rotary.scale]).all()
    assert len(lines) == 1
