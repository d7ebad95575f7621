"""Biases of GGUF files: whichever stand there are added, against transformers with the others set to zero."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import HEADS, HIDDEN, HUGGING_FACE, KV_HEADS, MLP, VOCAB, llama_cpp_order, random_weights, write_gguf
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from speq.checkpoint.sources.opening import open_source
from speq.runtime.single import SingleSequence

WIDTHS = {
    "attn_q": HIDDEN,
    "attn_k": HIDDEN // HEADS * KV_HEADS,
    "attn_v": HIDDEN // HEADS * KV_HEADS,
    "attn_output": HIDDEN,
    "ffn_gate": MLP,
    "ffn_up": MLP,
    "ffn_down": HIDDEN,
}
CASES = [
    *(("llama", stems) for stems in combinations(WIDTHS, 1)),
    ("llama", ()),
    ("llama", ("attn_q", "attn_k", "attn_v")),
    ("llama", ("attn_q", "ffn_up")),
    ("llama", tuple(WIDTHS)),
    ("qwen2", ()),
    ("qwen2", ("attn_k",)),
    ("qwen2", ("attn_q", "attn_k", "attn_v")),
    ("qwen3", ("attn_q", "attn_k", "attn_v")),
    ("qwen3", ("attn_output",)),
]
IDS = [int(token) for token in np.random.default_rng(2).integers(0, VOCAB, 24)]


def biased_file(path: Path, architecture: str, stems: tuple[str, ...]) -> tuple[Path, dict[str, NDArray[Any]]]:
    """A file with the biases ``stems`` and its weights by Hugging Face name, as they were before they were written."""
    rng = np.random.default_rng(1)
    weights, extra = random_weights(), {}
    original = {f"{HUGGING_FACE[stem]}.weight": values for stem, values in weights.items()}
    if architecture == "qwen3":
        for part in ("q", "k"):
            norm = rng.normal(1, 0.2, HIDDEN // HEADS).astype(np.float32)
            extra[f"blk.0.attn_{part}_norm.weight"] = norm
            original[f"model.layers.0.self_attn.{part}_norm.weight"] = norm
    for stem in stems:
        bias = rng.normal(0, 0.5, WIDTHS[stem]).astype(np.float32)
        original[f"{HUGGING_FACE[f'blk.0.{stem}']}.bias"] = bias
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stem) if architecture == "llama" else None
        extra[f"blk.0.{stem}.bias"] = llama_cpp_order(bias, heads) if heads else bias
    return write_gguf(path, weights, kind="F32", architecture=architecture, extra=extra), original


@pytest.mark.parametrize(("architecture", "stems"), CASES)
def test_every_bias_that_is_there_is_added(tmp_path: Path, architecture: str, stems: tuple[str, ...]) -> None:
    path, original = biased_file(tmp_path / "m.gguf", architecture, stems)
    source = open_source(path)
    hf_config = AutoConfig.for_model(**source.config)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager", dtype=torch.float32).eval()
    parameters = dict(model.named_parameters())
    assert set(original) <= set(parameters)
    for name, parameter in parameters.items():
        parameter.data = torch.from_numpy(original.get(name, np.zeros(tuple(parameter.shape), np.float32)).copy())
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()

    assert {info.name: info.shape for info in source.tensors} == {n: tuple(p.shape) for n, p in parameters.items()}
    engine = SingleSequence.of(
        (source.config, {info.name: source.read(info.name) for info in source.tensors}), "reference"
    )
    np.testing.assert_allclose(engine.forward(IDS, logits="all"), expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    absent = len(parameters) - len(original)
    said = [note for note in source.notes if "biases" in note]
    assert said == [f"{absent} biases that the file leaves out beside others are stored as zeros"] * (absent > 0)


def test_a_model_without_biases_gets_none(tmp_path: Path) -> None:
    source = open_source(biased_file(tmp_path / "m.gguf", "llama", ())[0])
    assert not [info.name for info in source.tensors if "bias" in info.name]
    assert (source.config["attention_bias"], source.config["mlp_bias"]) == (False, False)
