"""The engine: appending, cutting back, chunks, limits; and that none of it changes a bit of the logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.limits import BATCH_ROWS
from speq.runtime.single import SingleSequence

IDS = [int(token) for token in np.random.default_rng(3).integers(0, 97, 40)]


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return tiny_model(model_type="qwen2", num_hidden_layers=2, tie_word_embeddings=True)


@pytest.fixture
def engine(tiny):
    return SingleSequence.of((tiny.config, tiny.weights), backend="reference")


def in_pieces(engine, ids, sizes):
    rows, begin = [], 0
    for size in sizes:
        rows.append(engine.forward(ids[begin : begin + size], logits="all").copy())
        begin += size
    assert begin == len(ids)
    return np.concatenate(rows)


@pytest.mark.parametrize("sizes", [[1] * 40, [3, 16, 5, 16], [39, 1]])
def test_the_number_of_tokens_in_a_pass_changes_no_bit(engine, sizes):
    whole = engine.forward(IDS, logits="all").copy()
    engine.truncate(0)
    assert np.array_equal(whole, in_pieces(engine, IDS, sizes))


def test_which_logits(engine):
    every = engine.forward(IDS, logits="all").copy()
    assert every.shape == (40, 97)
    engine.truncate(0)
    assert np.array_equal(engine.forward(IDS), every[-1:])
    engine.truncate(0)
    assert engine.forward(IDS, logits="none").shape == (0, 97)
    assert engine.length == 40


def test_drafts_leave_no_trace_once_verified(engine):
    engine.forward(IDS[:20])
    plain = engine.forward(IDS[20:26], logits="all").copy()
    engine.truncate(20)
    drafted = [engine.forward([token], draft=True).copy() for token in IDS[20:26]]
    assert not np.array_equal(np.concatenate(drafted), plain)
    engine.truncate(20)
    assert np.array_equal(engine.forward(IDS[20:26], logits="all"), plain)


def test_draft_logits_equal_transformers_with_draft_weights(tiny):
    import torch

    from speq.formats import SplitTensor, draft_values

    engine = SingleSequence.of((tiny.config, tiny.weights), backend="reference")
    drafted = engine.forward(IDS, draft=True, logits="all")
    exact = {name: parameter.data for name, parameter in tiny.model.named_parameters()}
    embeddings = tiny.model.model.embed_tokens.weight.data.clone()
    try:
        for name, parameter in tiny.model.named_parameters():
            if isinstance(tiny.weights[name], SplitTensor):
                parameter.data = torch.from_numpy(draft_values(tiny.weights[name]).copy())
        with torch.no_grad():  # the embedding rows stay exact, the head tied to them is drafted
            expected = tiny.model(inputs_embeds=embeddings[torch.tensor([IDS])]).logits[0].numpy()
    finally:
        for name, parameter in tiny.model.named_parameters():
            parameter.data = exact[name]
    np.testing.assert_allclose(drafted, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_long_inputs_go_in_chunks(tiny):
    ids = (IDS * 14)[: 2 * BATCH_ROWS]
    engine = SingleSequence.of(
        ({**tiny.config, "max_position_embeddings": 2 * BATCH_ROWS}, tiny.weights), backend="reference"
    )
    every = engine.forward(ids, logits="all").copy()
    assert every.shape == (2 * BATCH_ROWS, 97)
    assert engine.length == 2 * BATCH_ROWS
    engine.truncate(0)
    assert np.array_equal(engine.forward(ids), every[-1:])


def test_a_converted_checkpoint_is_taken_as_it_is(tiny):
    split = {name: weight for name, weight in tiny.weights.items() if len(weight.shape) == 2}
    raw = {name: weight for name, weight in tiny.weights.items() if len(weight.shape) == 1}
    checkpoint = SimpleNamespace(config=tiny.config, split=split, raw=raw)
    logits = SingleSequence.of(checkpoint, backend="reference").forward(IDS).copy()
    assert np.array_equal(logits, SingleSequence.of((tiny.config, tiny.weights), backend="reference").forward(IDS))


def test_context_limit(tiny):
    engine = SingleSequence.of((tiny.config, tiny.weights), backend="reference", context=30)
    assert engine.context_length == 30
    with pytest.raises(SpeqError, match="40 tokens do not fit in the context of 30"):
        engine.forward(IDS)
    assert engine.length == 0
    engine.forward(IDS[:30])
    with pytest.raises(SpeqError, match="31 tokens"):
        engine.forward([0])


@pytest.mark.parametrize("context", [0, -1, 513])
def test_a_context_the_model_is_not_made_for(tiny, context):
    with pytest.raises(SpeqError, match="1 to 512"):
        SingleSequence.of((tiny.config, tiny.weights), backend="reference", context=context)


@pytest.mark.parametrize("token", [97, -1, 2**40])
def test_tokens_outside_the_vocabulary(engine, token):
    with pytest.raises(SpeqError, match=f"token id {token} is outside the model's vocabulary of 97"):
        engine.forward([1, token])
    assert engine.length == 0


def test_misuse(engine):
    engine.forward([1, 2])
    with pytest.raises(ValueError, match="at least one"):
        engine.forward([])
    for length in (3, -1):
        with pytest.raises(ValueError, match="cannot cut"):
            engine.truncate(length)


def test_missing_and_misshapen_weights(tiny):
    name = "model.layers.1.self_attn.k_proj.bias"
    without = {key: value for key, value in tiny.weights.items() if key != name}
    with pytest.raises(SpeqError, match=f"no tensor '{name}'"):
        SingleSequence.of((tiny.config, without), backend="reference")
    with pytest.raises(SpeqError, match=rf"'{name}' has shape \(7,\), config.json implies \(32,\)"):
        SingleSequence.of((tiny.config, {**without, name: np.zeros(7, np.float32)}), backend="reference")
