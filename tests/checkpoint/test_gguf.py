"""GGUF sources: values, row order, config and refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import HEAD_DIM, HUGGING_FACE, VOCAB, add_value, random_weights, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.checkpoint.gguf.config import build_config
from speq.checkpoint.gguf.file import GGUFFile
from speq.checkpoint.sources.opening import open_source
from speq.errors import SpeqError
from speq.formats import to_float32
from speq.models.config import model_config

EVERYWHERE = ("token_embd.bias", "output_norm.bias", "output.bias", "blk.0.attn_norm.bias", "blk.0.ffn_norm.bias")
STRAY_TENSORS = {
    "llama": (*EVERYWHERE, "blk.0.ssm_a.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_sub_norm.weight"),
    "qwen2": (*EVERYWHERE, "blk.0.attn_output.bias", "blk.0.ffn_down.bias", "blk.0.attn_k_norm.weight"),
    "qwen3": (*EVERYWHERE, "blk.0.ffn_up.bias", "blk.0.attn_q_norm.bias"),
}
"""What llama.cpp refuses too ("wrong number of tensors"), but for qwen2's output.bias."""


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_values_are_the_gguf_packages_in_hugging_face_order(tmp_path: Path, kind: str, architecture: str) -> None:
    weights = random_weights()
    source = open_source(write_gguf(tmp_path / "m.gguf", weights, kind=kind, architecture=architecture))
    biases = {f"model.layers.0.self_attn.{part}_proj.bias" for part in "qkv"} if architecture == "qwen2" else set()
    assert {info.name for info in source.tensors} == {f"{HUGGING_FACE[stem]}.weight" for stem in weights} | biases
    for stem, values in weights.items():
        quantised = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(values, quantised), quantised)
        found = source.read(f"{HUGGING_FACE[stem]}.weight")
        if found.dtype == np.uint16:
            found = to_float32(found, "fp16" if kind == "F16" else "bf16")
        assert np.array_equal(found, expected)
        assert (
            np.array_equal(
                source.read(f"{HUGGING_FACE[stem]}.weight", 5, 37), source.read(f"{HUGGING_FACE[stem]}.weight")[5:37]
            )
            or values.ndim == 1
        )
    assert bool(source.notes and kind in source.notes[0]) == kind.startswith("Q")


def test_k_quants_are_dequantised_as_the_gguf_package_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        path = write_raw(tmp_path / f"{kind}.gguf", kind, rng)
        source, theirs = open_source(path), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        stored = theirs["token_embd.weight"]
        expected = gguf.quants.dequantize(np.array(stored.data), stored.tensor_type)
        assert np.array_equal(source.read("model.embed_tokens.weight"), expected, equal_nan=True)


def write_raw(path: Path, kind: str, rng: np.random.Generator) -> Path:
    """A model whose embedding is of a type that the gguf package cannot quantise to: random bytes with sane scales."""
    quantised = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantised]
    data = rng.integers(0, 256, (VOCAB, 256 // block * block_bytes), dtype=np.uint8)
    halves = data.reshape(-1, block_bytes)
    for offset in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]:
        scales = rng.uniform(0.001, 0.01, (len(halves), 1)).astype(np.float16)
        halves[:, offset : offset + 2] = scales.view(np.uint8)
    weights = {stem: values for stem, values in random_weights().items() if stem != "token_embd"}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }.items():
        add_value(writer, key, value)
    writer.add_tensor("token_embd.weight", data, raw_dtype=quantised)
    for stem, values in weights.items():
        writer.add_tensor(f"{stem}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_query_and_key_biases_are_reordered_too(tmp_path: Path) -> None:
    bias = np.arange(256, dtype=np.float32)
    stored = bias.reshape(4, 2, 32).swapaxes(1, 2).reshape(-1)
    extra = {"blk.0.attn_q.bias": stored, "blk.0.attn_v.bias": np.arange(128, dtype=np.float32)}
    source = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), extra=extra))
    assert np.array_equal(source.read("model.layers.0.self_attn.q_proj.bias"), bias)
    assert np.array_equal(source.read("model.layers.0.self_attn.v_proj.bias"), np.arange(128))
    assert source.config["attention_bias"]


def test_config(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    config = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata)).config
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    untied = random_weights() | {"output": random_weights(1)["token_embd"]}
    assert not open_source(write_gguf(tmp_path / "u.gguf", untied)).config["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, metadata: dict[str, Any], expected: dict[str, Any] | None) -> None:
    source = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata))
    assert source.config["rope_scaling"] == expected


def llama3_divisors(factor: float, base: float) -> list[float]:
    """The loop of llama.cpp's converter for Llama 3.1."""
    divisors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * base ** (i / HEAD_DIM)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def test_llama3_rope_scaling_is_recognised(tmp_path: Path) -> None:
    for factor in (8.0, 32.0):
        extra = {"rope_freqs.weight": np.float32(llama3_divisors(factor, 100000.0))}
        scaling = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), extra=extra)).config["rope_scaling"]
        assert scaling == {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.attention.sliding_window": 64}, ["llama.attention.sliding_window"]),
        ({"llama.attention.sliding_window": 0}, []),
        ({"llama.logit_scale": 0.5, "llama.residual_scale": 1.0}, ["llama.logit_scale"]),
        ({"llama.rope.scaling.yarn_beta_fast": 16.0}, ["llama.rope.scaling.yarn_beta_fast"]),
        ({"llama.rope.scaling.yarn_beta_fast": 32.0, "llama.rope.scaling.yarn_ext_factor": 1.0}, []),
        ({"llama.attention.scale": 0.1, "qwen2.attention.scale": 0.1}, ["llama.attention.scale"]),
    ],
)
def test_keys_that_llama_cpp_does_not_read_here_are_named_and_not_used(
    tmp_path: Path, metadata: dict[str, Any], named: list[str]
) -> None:
    plain = open_source(write_gguf(tmp_path / "plain.gguf", random_weights()))
    source = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata))
    assert source.config == plain.config
    said = [note.split(" not used")[0] for note in source.notes if " not used" in note]
    assert said == ([", ".join(named)] if named else [])


def test_numbers_given_once_a_layer(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count": [4], "llama.attention.head_count_kv": [2], "llama.feed_forward_length": [512]}
    plain = open_source(write_gguf(tmp_path / "plain.gguf", random_weights()))
    assert open_source(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=keys)).config == plain.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gemma3"}, "architecture gemma3; supported are llama, qwen2, qwen3"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"split.count": 3}}, "one part of a split GGUF"),
        ({"metadata": {"llama.block_count": None}}, r"lacks the metadata key llama\.block_count"),
        ({"metadata": {"llama.block_count": "1"}}, r"llama\.block_count is '1', must be a whole number"),
        ({"metadata": {"llama.block_count": 0}}, r"llama\.block_count is 0, must be a whole number"),
        ({"metadata": {"llama.attention.head_count": 0}}, r"llama\.attention\.head_count is 0"),
        ({"metadata": {"llama.attention.head_count": [4, 4]}}, r"head_count is \[4, 4\], must be one number or 1"),
        (
            {"metadata": {"llama.block_count": 2, "llama.attention.head_count_kv": [4, 2]}},
            "head_count_kv differs per layer",
        ),
        ({"metadata": {"llama.attention.causal": False}}, "attention.causal is false"),
        ({"metadata": {"llama.nextn_predict_layers": 1}}, "predict further tokens"),
        ({"metadata": {"llama.attention.layer_norm_rms_epsilon": None}}, "lacks the metadata key .*rms_epsilon"),
        ({"metadata": {"llama.attention.layer_norm_rms_epsilon": "1e-5"}}, "rms_epsilon is '1e-5', must be a number"),
        ({"metadata": {"llama.rope.freq_base": float("nan")}}, "freq_base is nan, must be a number"),
        ({"metadata": {"llama.rope.dimension_count": 32}}, "only part of each head"),
        ({"metadata": {"llama.attention.value_length": 32}}, "unlike keys and values"),
        ({"metadata": {"llama.rope.scaling.type": "dynamic"}}, "scales RoPE by dynamic.*none, linear, yarn, longrope"),
        ({"metadata": {"llama.rope.scaling.type": 2}}, r"rope\.scaling\.type is 2, must be a string"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, r"lacks the tensor rope_factors_short\.weight"),
        ({"metadata": {"llama.rope.scaling.factor": -2.0}}, r"rope\.scaling\.factor is -2\.0"),
        ({"metadata": {"llama.rope.scaling.attn_factor": 0.0}}, "attn_factor is 0"),
        (
            {
                "metadata": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
                "extra": {"rope_freqs.weight": np.ones(32, np.float32)},
            },
            "by yarn and by the tensor",
        ),
        (
            {"metadata": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 1}},
            "yarn from 1 positions",
        ),
        (
            {
                "metadata": {"llama.rope.scaling.type": "longrope"},
                "extra": {"rope_freqs.weight": np.ones(32, np.float32)},
            },
            r"tensor rope_freqs\.weight belongs to no llama model that scales RoPE by longrope",
        ),
        ({"extra": {"rope_factors_long.weight": np.ones(32, np.float32)}}, r"rope_factors_long\.weight belongs to no"),
        ({"extra": {"rope_freqs.weight": np.ones(16, np.float32)}}, r"rope_freqs\.weight is F32 \[16\], must be"),
        ({"extra": {"rope_freqs.weight": np.ones(32, np.float16)}}, r"rope_freqs\.weight is F16 \[32\], must be"),
        ({"extra": {"rope_freqs.weight": np.zeros(32, np.float32)}}, r"rope_freqs\.weight holds values"),
        ({"metadata": {"llama.attention.key_length": 32}}, "where its heads need"),
        ({"extra": {"output.weight": np.ones((48, 256), np.int32)}}, "lm_head.weight is I32, which cannot be read"),
        (
            {"architecture": "qwen3", "extra": {"rope_freqs.weight": np.ones(32, np.float32)}},
            r"tensor rope_freqs\.weight belongs to no qwen3 model",
        ),
        *(
            (
                {"architecture": architecture, "extra": {name: np.ones(256, np.float32)}},
                rf"tensor {re.escape(name)} belongs to no supported model of the architecture {architecture}",
            )
            for architecture, names in STRAY_TENSORS.items()
            for name in names
        ),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpeqError, match=message):
        open_source(write_gguf(tmp_path / "m.gguf", random_weights(), **change))


def test_missing_embedding_is_named(tmp_path: Path) -> None:
    weights = {stem: values for stem, values in random_weights().items() if stem != "token_embd"}
    with pytest.raises(SpeqError, match=r"lacks the tensor token_embd\.weight"):
        open_source(write_gguf(tmp_path / "m.gguf", weights))


KEYS = (
    "general.architecture", "split.count", "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.attention.key_length", "llama.attention.value_length", "llama.attention.layer_norm_rms_epsilon",
    "llama.attention.causal", "llama.attention.sliding_window", "llama.expert_count", "llama.nextn_predict_layers",
    "llama.rope.dimension_count", "llama.rope.freq_base", "llama.rope.scale_linear", "llama.rope.scaling.type",
    "llama.rope.scaling.factor", "llama.rope.scaling.attn_factor", "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.yarn_beta_fast", "tokenizer.ggml.bos_token_id",
)  # fmt: skip
SCALARS = (
    st.booleans() | st.integers(-2, 300) | st.floats(width=32) | st.sampled_from(["", "llama", "yarn", "none", "1"])
)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), SCALARS | st.lists(SCALARS, max_size=2), max_size=4))
def test_whatever_stands_in_the_metadata_is_understood_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "metadata.gguf"
    file = GGUFFile(path if path.exists() else write_gguf(path, random_weights()))
    file.metadata |= changes
    try:
        config = build_config(file)
        lines = [str(model_config(config).model_type)]
    except SpeqError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
