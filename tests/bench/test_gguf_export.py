"""GGUF files written for other engines: read by the gguf package and by speq, they give the weights that went in."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer, pre_tokenizers

from speq.bench.peers.gguf_export import export_gguf
from speq.checkpoint.sources.gguf import GGUFSource
from speq.errors import SpeqError
from speq.models.config import model_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def stored(path):
    """The tensors of a safetensors file, as the official library reads them."""
    return safetensors.numpy.load_file(path / "model.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_attention_heads": 2, "rope_theta": 5e5, "eos_token_id": [257, 256]},
        {"rope_scaling": LLAMA3, "rope_theta": 5e5},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_a_llama_comes_back_as_it_was(write_checkpoint, tmp_path, config):
    heads = config.get("num_attention_heads", 4)

    def change(tensors):
        if heads == 2:  # wider heads: as many rows of queries, twice as many of keys
            for name in [name for name in tensors if "k_proj" in name or "v_proj" in name]:
                tensors[name] = np.concatenate([tensors[name], tensors[name] * 2])

    source = write_checkpoint(tmp_path / "hf", change=change, **config)
    written = GGUFSource(export_gguf(source, tmp_path / "model.gguf"))
    original = stored(source)
    assert {info.name for info in written.tensors} == set(original)
    for name, values in original.items():
        back = written.read(name)
        expected = values.view(np.uint16) if values.ndim == 2 else values.astype(np.float32)
        np.testing.assert_array_equal(back, expected, err_msg=name)
    mine, theirs = (model_config(c) for c in (json.loads((source / "config.json").read_text()), written.config))
    np.testing.assert_allclose(theirs.rotary.inv_freq, mine.rotary.inv_freq, rtol=1e-6)
    assert {**vars(mine), "rotary": None} == {**vars(theirs), "rotary": None}


def test_query_rows_lie_as_llama_cpp_wants_them(write_checkpoint, tmp_path):
    source = write_checkpoint(tmp_path / "hf")
    reader = gguf.GGUFReader(export_gguf(source, tmp_path / "model.gguf"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    query = stored(source)["model.layers.1.self_attn.q_proj.weight"]
    # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py.
    permuted = query.reshape(4, 2, 64 // 4 // 2, 64).swapaxes(1, 2).reshape(query.shape)
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight"].data, permuted)
    assert tensors["blk.1.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert tensors["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def write_qwen2(path, write_checkpoint, scale=1.0):
    """A Qwen2 in BF16 with biases and a head of its own."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    write_checkpoint(path)
    tensors = {name: values.float() * scale for name, values in load_file(path / "model.safetensors").items()}
    torch.manual_seed(0)
    for layer in range(2):
        for part, width in (("q", 64), ("k", 32), ("v", 32)):
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = torch.randn(width)
    tensors["lm_head.weight"] = torch.randn(259, 64)
    tensors = {name: values.to(torch.bfloat16) for name, values in tensors.items()}
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
    (path / "config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_bf16_weights_are_rounded_to_f16_or_kept(write_checkpoint, tmp_path, kind):
    import torch

    tensors = write_qwen2(tmp_path / "hf", write_checkpoint)
    written = GGUFSource(export_gguf(tmp_path / "hf", tmp_path / "model.gguf", kind))
    assert {info.name for info in written.tensors} == set(tensors)
    assert written.config["model_type"] == "qwen2"
    for name, values in tensors.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(written.read(name), values.float().numpy(), err_msg=name)
            continue
        expected = values.view(torch.int16) if kind == "BF16" else values.half().view(torch.int16)
        np.testing.assert_array_equal(written.read(name), expected.numpy().view(np.uint16), err_msg=name)


def test_what_does_not_fit_is_refused(write_checkpoint, tmp_path):
    write_qwen2(tmp_path / "large", write_checkpoint, scale=1e6)
    with pytest.raises(SpeqError, match="beyond the range of F16; write BF16"):
        export_gguf(tmp_path / "large", tmp_path / "model.gguf")
    half = write_checkpoint(tmp_path / "half")
    with pytest.raises(SpeqError, match="only BF16 weights"):
        export_gguf(half, tmp_path / "model.gguf", "BF16")
    yarn = write_checkpoint(tmp_path / "yarn", rope_scaling={"rope_type": "yarn", "factor": 2.0})
    with pytest.raises(SpeqError, match="'yarn' cannot be written"):
        export_gguf(yarn, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_the_vocabulary_gives_the_same_ids(write_checkpoint, tmp_path):
    def change(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = np.concatenate([embedding, embedding[:1]])

    source = write_checkpoint(tmp_path / "hf", change=change, vocab_size=260)
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"]["vocab"]["th"] = 256  # special tokens move up
    content["model"]["merges"] = [["t", "h"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    written = GGUFSource(export_gguf(source, tmp_path / "model.gguf"))
    again = Tokenizer.from_str(written.files["tokenizer.json"].decode())
    assert again.encode("the").ids == [256, 68]
    text = "<|begin|>The 42 lighthouses, naïve?<|end|>"
    assert again.encode(text).ids == tokenizer.encode(text).ids


def test_a_model_without_a_tokenizer_is_written_without_one(write_checkpoint, tmp_path):
    source = write_checkpoint(tmp_path / "hf", tokenizer=False)
    written = GGUFSource(export_gguf(source, tmp_path / "model.gguf"))
    assert written.files == {}
