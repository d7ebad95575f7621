"""The draw: native against the NumPy definition, the definition against probability theory and published vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.errors import SpeqError
from speq.runtime.sampling import Sampling, choose
from speq.runtime.sampling_reference import (
    choose_reference,
    exp_nonpositive,
    exponential,
    filtered_weights,
    likely_reference,
    philox,
)


def random_logits(seed: int, size: int, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def chi_square_bound(degrees: int) -> float:
    """Wilson-Hilferty approximation of the 1 - 1e-6 quantile."""
    k = 2 / (9 * degrees)
    return degrees * (1 - k + 4.75 * math.sqrt(k)) ** 3


def test_philox_matches_the_published_known_answers():
    """Known-answer vectors of Random123 (kat_vectors, philox4x32-10), as far as our counter layout reaches."""
    assert [hex(w) for w in philox(0, 0, np.array([0], np.uint64))[0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip


def test_exp_and_exponential_against_numpy():
    x = np.linspace(-60, 0, 100_001).astype(np.float32)
    np.testing.assert_allclose(exp_nonpositive(x), np.exp(x.astype(np.float64)), rtol=3e-7)
    assert exp_nonpositive(np.float32([0.0]))[0] == 1.0
    assert exp_nonpositive(np.float32([-60.1, -1e30])).tolist() == [0.0, 0.0]
    words = np.concatenate([np.arange(10), 2**32 - 1 - np.arange(10), np.arange(0, 2**32, 99_991)]).astype(np.uint32)
    np.testing.assert_allclose(exponential(words), -np.log1p(-(words + 0.5) / 2**32), rtol=1e-14)


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 700),
    spread=st.sampled_from([0.0, 0.5, 4.0, 40.0]),
    temperature=st.sampled_from([0.0, 0.001, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**40),
    ties=st.booleans(),
)
def test_native_equals_reference(size, spread, temperature, top_k, top_p, min_p, seed, position, ties):
    logits = random_logits(seed % 2**32, size, spread)
    if ties:
        logits = np.round(logits)
    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    native, reference = choose(logits, sampling, position), choose_reference(logits, sampling, position)
    assert native.token == reference.token
    assert native.confidence == pytest.approx(reference.confidence, rel=1e-4)


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 700),
    spread=st.sampled_from([0.0, 0.5, 4.0, 40.0]),
    sampling=st.sampled_from(
        [Sampling(), Sampling(1.0, seed=1), Sampling(0.3, 3, seed=1), Sampling(5.0, 0, 0.9, 0.01, 1)]
    ),
    count=st.integers(0, 8),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
)
def test_the_most_probable_tokens_are_those_of_the_definition(size, spread, sampling, count, seed, ties):
    logits = random_logits(seed, size, spread)
    if ties:
        logits = np.round(logits)
    told = choose(logits, sampling, 3, likely=count)
    expected = likely_reference(logits, sampling, count)
    assert [token for token, _ in told.likely] == [token for token, _ in expected]
    np.testing.assert_allclose([p for _, p in told.likely], [p for _, p in expected], rtol=1e-4, atol=1e-25)
    plain = choose(logits, sampling, 3)
    assert (told.token, told.confidence) == (plain.token, plain.confidence)


def test_probabilities_of_a_real_vocabulary_add_up():
    logits = random_logits(4, 151_936, 3.0)
    logits[[77, 150_000]] = logits.max() + 1
    for sampling in (Sampling(), Sampling(0.7, seed=2), Sampling(0.7, 20, 0.9, 0.02, 2)):
        likely = choose(logits, sampling, 0, likely=8, with_confidence=False).likely
        assert [token for token, _ in likely[:2]] == [77, 150_000]
        expected = likely_reference(logits, sampling, 8)
        np.testing.assert_allclose([p for _, p in likely], [p for _, p in expected], rtol=1e-4)
    assert [token for token, _ in choose(np.zeros(9, np.float32), Sampling(), 0, likely=3).likely] == [0, 1, 2]


def test_the_noise_of_tokens_decides_the_race():
    logits, sampling = random_logits(8, 300, 2.0), Sampling(0.9, seed=12)
    weights = filtered_weights(logits, sampling).astype(np.float64)
    for position in range(50):
        ratios = np.array(sampling.noise(range(300), position)) / weights
        assert int(ratios.argmin()) == choose(logits, sampling, position).token


def test_native_equals_reference_on_a_real_vocabulary():
    for position in range(60):
        logits = random_logits(position, 49_152, 3.0)
        for sampling in (Sampling(1.0, seed=9), Sampling(0.7, 40, 0.9, 0.02, 9), Sampling(1.3, 0, 0.95, 0, 9)):
            assert choose(logits, sampling, position).token == choose_reference(logits, sampling, position).token


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.5), Sampling(2.0, top_k=10), Sampling(1.0, top_p=0.8), Sampling(1.5, 30, 0.9, 0.05)],
)
def test_draws_follow_the_filtered_softmax(sampling):
    logits = random_logits(3, 50, 2.0)
    expected = np.exp(logits.astype(np.float64) / (sampling.temperature))
    if sampling.top_k:
        expected[np.argsort(logits)[: -sampling.top_k]] = 0
    if sampling.top_p < 1:
        order = np.argsort(expected)[::-1]
        held = np.cumsum(expected[order]) / expected.sum()
        expected[order[1 + np.flatnonzero(held >= sampling.top_p)[0] :]] = 0
    expected[expected < sampling.min_p * expected.max()] = 0
    draws = 40_000
    seeded = [Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, s) for s in range(20)]
    tokens = [choose(logits, seeded[i % 20], i // 20).token for i in range(draws)]
    counts = np.bincount(tokens, minlength=len(logits))
    expected *= draws / expected.sum()
    assert not counts[expected == 0].any()
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert chi_square < chi_square_bound(common.sum() - 1)


def test_ties_at_the_filters_stay():
    logits = np.float32([1, 1, 1, 0, 0])
    assert np.flatnonzero(filtered_weights(logits, Sampling(1.0, top_k=1))).tolist() == [0, 1, 2]
    assert np.flatnonzero(filtered_weights(logits, Sampling(1.0, top_p=0.1))).tolist() == [0, 1, 2]
    drawn = {choose(logits, Sampling(1.0, top_k=2, seed=s), 0).token for s in range(200)}
    assert drawn == {0, 1, 2}


def test_greedy_takes_the_first_of_equal_logits():
    logits = np.zeros(1001, np.float32)
    logits[[700, 300]] = 2
    assert choose(logits, Sampling(), 0).token == 300
    assert choose(logits, Sampling(), 0, with_confidence=False) == (300, 1.0, [])


def test_noise_depends_on_seed_position_and_token():
    logits = np.zeros(1000, np.float32)
    draws = {choose(logits, Sampling(1.0, seed=s), p).token for s in range(10) for p in range(10)}
    assert len(draws) > 85
    assert choose(logits, Sampling(1.0, seed=3), 7) == choose(logits.copy(), Sampling(1.0, seed=3), 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 17, 40])
def test_logits_that_are_not_finite_are_an_error(bad, index):
    logits = np.zeros(41, np.float32)
    logits[index] = bad
    for sampling in (Sampling(), Sampling(1.0, seed=1)):
        with pytest.raises(SpeqError, match="position 5 are not finite"):
            choose(logits, sampling, 5)


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": 1e-9}, {"top_k": -1},
     {"top_p": 0}, {"top_p": 1.5}, {"min_p": -0.1}, {"min_p": 2}, {"seed": -1}, {"seed": 2**64}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(SpeqError, match="out of range"):
        Sampling(**options)


def test_a_missing_seed_is_drawn_once():
    sampling = Sampling(0.8).seeded()
    assert sampling.seed is not None
    assert sampling.seeded() is sampling
    assert Sampling().seeded().seed is None
