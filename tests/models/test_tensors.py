"""Names of tensors, heads that are the embedding or are not, and tensors that nobody reads: as transformers has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from speq.checkpoint.store import load_converted
from speq.conversion.convert import convert
from speq.conversion.restore import restore
from speq.errors import SpeqError
from speq.models.tensors import load_fitting
from speq.runtime.single import SingleSequence

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = [int(token) for token in np.random.default_rng(3).integers(0, 97, 12)]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def saved(tiny_model: Any, tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny model of a family, FP16, with ``change`` made to its tensors."""

    def save(family: str, change: Callable[[Tensors], object], *, tied: bool = True) -> Path:
        tiny = tiny_model("fp16", model_type=family, num_hidden_layers=2, tie_word_embeddings=tied)
        tensors = {name: value.detach().half().clone() for name, value in tiny.model.named_parameters()}
        change(tensors)
        path = tmp_path / "model"
        path.mkdir()
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        tiny.model.config.save_pretrained(path)
        return path

    return save


def assert_same_logits(path: Path) -> list[str]:
    """Compares a checkpoint's logits with transformers'; returns the notes of its conversion."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    out = path.parent / "out"
    notes = convert(path, out, threads=1).notes
    converted = load_fitting(out)
    logits = SingleSequence.of(converted, backend="reference").forward(IDS, logits="all")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-3 * np.abs(expected).max())
    original, back = (
        load_file(path / "model.safetensors"),
        load_file(restore(out, path.parent / "back") / "model.safetensors"),
    )
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
    return notes


def rename(tensors: Tensors, new_name: Callable[[str], str]) -> None:
    renamed = {new_name(name): value for name, value in tensors.items()}
    tensors.clear()
    tensors.update(renamed)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_the_base_model(saved: Callable[..., Path], family: str, tied: bool) -> None:
    path = saved(family, lambda tensors: rename(tensors, lambda name: name.removeprefix("model.")), tied=tied)
    assert assert_same_logits(path)[:1] == ["no tokenizer.json: text needs one, token ids (--ids) do not"]


def test_some_names_with_the_prefix_and_some_without(saved: Callable[..., Path]) -> None:
    def mix(name: str) -> str:
        return f"model.{name}" if name == HEAD else name.removeprefix("model.") if "mlp" in name else name

    assert_same_logits(saved("llama", lambda tensors: rename(tensors, mix), tied=False))


def test_a_tensor_under_both_names_is_refused(saved: Callable[..., Path]) -> None:
    path = saved("llama", lambda tensors: tensors.update({"norm.weight": tensors["model.norm.weight"] + 1}))
    with pytest.raises(SpeqError, match=r"model\.norm\.weight and norm\.weight are both model\.norm\.weight; delete"):
        convert(path, path.parent / "out")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_head_counts_although_the_config_ties_it(saved: Callable[..., Path], family: str) -> None:
    path = saved(family, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].flip(0).contiguous()}))
    assert_same_logits(path)
    assert HEAD in load_converted(path.parent / "out").split


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_head_that_equals_the_embedding_is_kept_once(saved: Callable[..., Path], family: str) -> None:
    path = saved(family, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert_same_logits(path)
    assert HEAD not in load_converted(path.parent / "out").split


def test_a_head_stands_for_an_embedding_that_is_tied_to_it(saved: Callable[..., Path]) -> None:
    assert_same_logits(saved("qwen2", lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)})))


def test_an_untied_head_that_is_missing_is_refused(saved: Callable[..., Path]) -> None:
    path = saved("llama", lambda tensors: tensors.pop(HEAD), tied=False)
    with pytest.raises(SpeqError, match=r"no tensor 'lm_head\.weight', which .* \(tie_word_embeddings is false\)"):
        convert(path, path.parent / "out")
    assert [file.name for file in path.parent.iterdir()] == ["model"]


def test_tensors_that_nobody_reads_are_named(saved: Callable[..., Path]) -> None:
    more = {f"model.mtp.{i}.weight": torch.ones(3, 2, dtype=torch.float16) for i in range(5)}
    path = saved("llama", lambda tensors: tensors.update(more))
    line = "tensors that the model does not read are kept: model.mtp.0.weight, model.mtp.1.weight, model.mtp.2.weight"
    assert f"{line} and 2 more" in assert_same_logits(path)


def test_what_is_known_to_be_harmless_needs_no_note(saved: Callable[..., Path]) -> None:
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.9.input_layernorm.weight": torch.ones(3),
    }
    notes = assert_same_logits(saved("llama", lambda tensors: tensors.update(more)))
    assert notes[1:] == ["a tensor that the model does not read is kept: model.layers.9.input_layernorm.weight"]


def test_a_shape_is_explained_by_the_entries_that_say_so(saved: Callable[..., Path]) -> None:
    path = saved("llama", lambda tensors: None)
    config = json.loads((path / "config.json").read_text())
    for entries, reason in (
        (
            {"intermediate_size": 100},
            r"\(112, 64\), config.json implies \(100, 64\) \(intermediate_size 100, hidden_size",
        ),
        (
            {"num_key_value_heads": 1},
            r"\(32, 64\), .* \(16, 64\) \(num_key_value_heads 1 x head_dim 16, hidden_size 64\)",
        ),
        ({"vocab_size": 98}, r"\(97, 64\), .* \(98, 64\) \(vocab_size 98, hidden_size 64\)"),
    ):
        (path / "config.json").write_text(json.dumps(config | entries))
        with pytest.raises(SpeqError, match=f"model: tensor .* has shape {reason}"):
            convert(path, path.parent / "out")
        assert [file.name for file in path.parent.iterdir()] == ["model"]
