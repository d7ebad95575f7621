"""Draws that are guessed ahead: how probably tokens win, now that their noise is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speq.decoding import NgramDrafter, SuccessorTable
from speq.decoding.drafters import Context
from speq.decoding.race import by_chance
from speq.runtime.sampling import Sampling

WEIGHTS = st.dictionaries(st.integers(0, 200_000), st.floats(0, 1), min_size=1, max_size=8)


@given(WEIGHTS, st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_chances_are_probabilities_whatever_the_noise(weights, seed, position):
    for sampling in (Sampling(), Sampling(0.8, seed=seed)):
        found = by_chance(weights, sampling, position)
        assert {token for token, _ in found} == set(weights)
        assert all(0 <= chance <= 1 for _, chance in found)
        assert [chance for _, chance in found] == sorted((chance for _, chance in found), reverse=True)


def test_whoever_runs_best_is_the_likeliest_to_be_drawn():
    sampling, weights = Sampling(1.0, seed=7), {3: 0.5, 4: 0.3, 5: 0.2}
    for position in range(50):
        noise = dict(zip(weights, sampling.noise(list(weights), position), strict=True))
        winner = min(weights, key=lambda token: noise[token] / weights[token])
        found = by_chance(weights, sampling, position)
        assert found[0][0] == winner
        assert math.isclose(sum(chance for _, chance in found), 1)


def test_a_table_whose_probabilities_add_up_to_more_than_1_is_sure_at_most():
    """A few guesses of different origin may; one that wins by far would otherwise be surer than sure."""
    table = SuccessorTable()
    table.learn(None, 1, [(2, 0.9), (3, 0.3)])
    confidences = []
    for seed in range(400):
        proposing = NgramDrafter(table).propose(
            Context([1], 4, 100, lambda _: True, lambda _: None, lambda _: None, sampling=Sampling(1.0, seed=seed))
        )
        with pytest.raises(StopIteration) as stop:
            next(proposing)
        confidences += stop.value.value.confidences
    assert max(confidences) == 1
