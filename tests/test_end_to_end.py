"""From a checkpoint to text and back: what is restored, and that nothing but the prompt, the weights and the seed
decides a token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import speq
from speq.backends.cpu import available_isas
from speq.checkpoint.store import load_converted
from speq.conversion.convert import convert
from speq.conversion.locate import converted_model
from speq.conversion.restore import restore

FORMATS = ["nested", "e3m0"]
DTYPES = ["fp16", "bf16"]
LENGTHS = [*range(1, 17), None]
PROMPT = "Once upon a time"
SAMPLINGS = {"greedy": speq.Sampling(), "sampled": speq.Sampling(temperature=0.9, top_p=0.95, seed=5)}


@pytest.fixture(scope="module")
def checkpoints(write_checkpoint, tmp_path_factory):
    """The tiny checkpoint as FP16 and, with the same values rounded by torch, as BF16."""
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path_factory.mktemp("sources")
    fp16, bf16 = (write_checkpoint(base / dtype, max_position_embeddings=512) for dtype in DTYPES)
    tensors = load_file(bf16 / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, bf16 / "model.safetensors")
    return {"fp16": fp16, "bf16": bf16}


@pytest.fixture(scope="module", params=itertools.product(FORMATS, DTYPES), ids="-".join)
def paths(request, checkpoints, tmp_path_factory):
    """A checkpoint and its conversion, in every format and dtype."""
    format, dtype = request.param
    path = tmp_path_factory.mktemp("converted") / "model"
    convert(checkpoints[dtype], path, format=format, group_size=32, threads=1)
    return checkpoints[dtype], path


def open_model(path, threads=1):
    return speq.load(path, threads=threads)


def ids(model, sampling, tokens, **options):
    model.reset()
    result = model.generate(PROMPT, max_new_tokens=tokens, sampling=sampling, ignore_ends=True, **options)
    assert len(result.token_ids) == tokens
    return result.token_ids


def tensors(path):
    """Every tensor of a checkpoint as torch reads it: dtype, shape and bytes."""
    import torch
    from safetensors.torch import load_file

    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in load_file(path / "model.safetensors").items()
    }


def test_restoring_gives_the_source_back(paths, tmp_path):
    source, converted = paths
    restored = restore(converted, tmp_path / "restored")
    assert tensors(restored) == tensors(source)
    assert (restored / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_what_was_restored_converts_to_the_same_model(paths, tmp_path):
    _, converted = paths
    first = load_converted(converted)
    restored = restore(converted, tmp_path / "restored")
    convert(restored, tmp_path / "again", format=first.spec.format, group_size=32, threads=1)
    again = load_converted(tmp_path / "again")
    for name, tensor in first.split.items():
        for plane, values in tensor.planes().items():
            assert np.array_equal(values, again.split[name].planes()[plane]), (name, plane)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_no_draft_changes_a_token(paths, sampling):
    model = open_model(paths[1])
    plain = ids(model, sampling, 96, draft="none")
    for length in LENGTHS:
        assert ids(model, sampling, 96, draft="self", draft_length=length) == plain, f"draft length {length}"
    assert ids(model, sampling, 96, draft="auto") == plain


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_no_machine_changes_a_token(paths, sampling, monkeypatch):
    """Drafting with every instruction set and with more threads, against one plain run on one thread."""
    plain = ids(open_model(paths[1]), sampling, 64, draft="none")
    for threads in (2, 4):
        assert ids(open_model(paths[1], threads), sampling, 64, draft="self", draft_length=5) == plain, threads
    for isa in available_isas():
        monkeypatch.setenv("SPEQ_ISA", isa)
        assert ids(open_model(paths[1]), sampling, 64, draft="self", draft_length=5) == plain, isa


def test_a_long_text_to_the_end_of_the_context(paths):
    model = open_model(paths[1])
    plain = model.generate(PROMPT, draft="none", ignore_ends=True)
    drafted = model.generate(PROMPT, draft="self", ignore_ends=True)
    assert plain.stats.prompt_tokens + plain.stats.new_tokens == 512
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.stats.finish_reason == plain.stats.finish_reason == "length"


def test_a_directory_is_converted_on_first_use(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path))
    text = open_model(checkpoints["fp16"]).generate(PROMPT, max_new_tokens=40).text
    converted = converted_model(str(checkpoints["fp16"]), calibrate=False)
    assert converted.is_relative_to(tmp_path)
    assert open_model(converted).generate(PROMPT, max_new_tokens=40, draft="none").text == text
