"""The model in torch, against the engine: both levels, the draft in rounds, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speq.formats import SplitTensor, decode, draft_values, to_float32
from speq.runtime.single import SingleSequence
from speq.training.target import ROUND, Cache, Target, default_taps

CONFIGS = {
    "llama": {},
    "llama biases": {"attention_bias": True, "rope_theta": 5e5},
    "llama all biases": {"attention_bias": True, "mlp_bias": True},
    "llama tied": {"tie_word_embeddings": True},
    "mistral window": {"model_type": "mistral", "sliding_window": 7, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 64},
    "qwen2 window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
}
IDS = [int(token) for token in np.random.default_rng(7).integers(0, 97, 30)]


def engine_of(config, weights, level):
    """The NumPy engine with float32 matrices: the exact values, or those that a draft takes them for."""

    def values(name, matrix):
        if not isinstance(matrix, SplitTensor):
            return matrix
        exact = level == "exact" or "embed_tokens" in name
        return to_float32(decode(matrix), matrix.spec.dtype) if exact else draft_values(matrix)

    return SingleSequence.of(
        (config, {name: values(name, matrix) for name, matrix in weights.items()}), backend="reference"
    )


def logits(target, level, final):
    return torch.nn.functional.linear(final, target.head(level)).numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_exact_level_is_the_engines(random_model, name):
    config, weights = random_model(**CONFIGS[name])
    target = Target(config, weights, "cpu")
    reading = target.read(torch.tensor([IDS]), (1, 1, 2))
    expected = engine_of(config, weights, "exact").forward(IDS, logits="all")
    found = logits(target, "exact", reading.final["exact"][0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_a_stored_head_counts_although_the_config_ties_it(random_model):
    config, weights = random_model()
    target = Target({**config, "tie_word_embeddings": True}, weights, "cpu")
    reading = target.read(torch.tensor([IDS]), (1, 1, 2))
    found = logits(target, "exact", reading.final["exact"][0])
    expected = engine_of(config, weights, "exact").forward(IDS, logits="all")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_the_first_round_of_a_draft_is_the_engine_with_draft_values(random_model):
    config, weights = random_model()
    target = Target(config, weights, "cpu")
    reading = target.read(torch.tensor([IDS]), (1, 1, 2))
    expected = engine_of(config, weights, "draft").forward(IDS[:ROUND], logits="all")
    found = logits(target, "draft", reading.final["draft"][0, :ROUND])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_later_rounds_see_exact_keys_as_in_the_engine(random_model):
    """The engine's draft rounds its activations to 8 bits, so it agrees less closely; with the keys of a draft that was
    never verified it would agree far less."""
    config, weights = random_model()
    target = Target(config, weights, "cpu")
    offset = 3
    found = logits(target, "draft", target.read(torch.tensor([IDS]), (1, 1, 2), offset).final["draft"][0])
    engine = SingleSequence.of((config, weights), backend="reference")
    parts, begin = [], 0
    while begin < len(IDS):
        end = min(begin + ROUND - (begin + offset) % ROUND, len(IDS))
        parts.append(engine.forward(IDS[begin:end], draft=True, logits="all").copy())
        engine.truncate(begin)
        engine.forward(IDS[begin:end], logits="none")
        begin = end
    expected = np.concatenate(parts)
    unverified = engine_of(config, weights, "draft").forward(IDS, logits="all")
    later = slice(2 * ROUND, None)
    error, without = (np.abs(x[later] - expected[later]).mean() for x in (found, unverified))
    assert error < 0.06 * np.abs(expected).mean()
    assert error < 0.3 * without


def test_hidden_states_are_tapped_after_the_layers_named(random_model):
    """A model of its first two layers ends where the third begins."""
    config, weights = random_model()
    short = {**config, "num_hidden_layers": 2}
    tokens = torch.tensor([IDS])
    deep = Target(config, weights, "cpu").read(tokens, (0, 2, 3)).features["exact"]
    shallow = Target(short, weights, "cpu").read(tokens, (0, 1, 2)).features["exact"]
    embedding = Target(short, weights, "cpu").embedding
    assert torch.equal(deep[0, :, :64], embedding[IDS])
    assert torch.equal(deep[0, :, 64:128], shallow[0, :, 128:])


@pytest.mark.parametrize("name", ["llama", "mistral window", "qwen3"])
def test_steps_over_a_cache_give_what_reading_gives(random_model, name):
    """Two sequences at different places; the draft goes on from an exact cache, as a round does."""
    config, weights = random_model(**CONFIGS[name])
    target, taps = Target(config, weights, "cpu"), (1, 2, 3)
    tokens = torch.tensor([IDS, IDS[::-1]])
    reading = target.read(tokens, taps)
    cache = Cache(target.config, 2, 40, target.embedding)
    begin = 2 * ROUND
    for place in range(begin):
        final, tapped = target.step("exact", tokens[:, place], torch.tensor([place, place]), cache, 40, taps)
        torch.testing.assert_close(final, reading.final["exact"][:, place], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(tapped, reading.features["exact"][:, place], rtol=1e-3, atol=1e-3)
    for ahead in range(ROUND):
        # The second sequence is a round behind: what the cache holds after a place is not looked at.
        places = torch.tensor([begin + ahead, begin - ROUND + ahead])
        final, tapped = target.step("draft", tokens[[0, 1], places], places, cache, 40, taps)
        torch.testing.assert_close(final, reading.final["draft"][[0, 1], places], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(tapped, reading.features["draft"][[0, 1], places], rtol=1e-3, atol=1e-3)


def test_taps_are_low_middle_and_high_and_exist_in_small_models():
    assert default_taps(28) == (2, 14, 27)
    assert default_taps(30) == (2, 15, 29)
    for layers in range(1, 40):
        low, middle, high = default_taps(layers)
        assert 0 <= low <= middle <= high < layers
