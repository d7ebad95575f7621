"""The acceptance model: the rounds that can begin have the probabilities that single tokens imply."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance, Round


def by_tokens(rate, length, stop):
    """Rounds of a draft of ``length``, from each way in which its tokens can be right (r) or wrong, foreseen or not."""
    found = Counter()
    for right in itertools.product((True, False), repeat=length):
        for foreseen in (True, False):
            count = next((at for at, one in enumerate(right) if not one), length)
            weight = (stop if foreseen else 1 - stop) * rate ** sum(right) * (1 - rate) ** (length - sum(right))
            found[Round(count if foreseen else length, count)] += weight
    return {one: weight for one, weight in found.items() if weight}


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(1, 2), Fraction(9, 10), Fraction(1)])
@pytest.mark.parametrize("stop", [Fraction(0), Fraction(1, 3), Fraction(1)])
def test_rounds_have_the_probabilities_of_their_tokens(rate, stop):
    for left, length in ((100, 1), (100, 5), (6, 5), (4, 5), (1, 5)):
        found = Counter()
        for one, probability in Acceptance(float(rate), length, float(stop)).outcomes(left):
            found[one] += probability
        expected = by_tokens(rate, min(length, left - 1), stop)
        assert dict(found) == pytest.approx({one: float(weight) for one, weight in expected.items()}, abs=1e-15)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.976, 1.0])
@pytest.mark.parametrize("length", [1, 4, 16, 64])
def test_a_round_yields_a_geometric_sum_of_tokens(rate, length):
    by_sum = sum(rate**k for k in range(length + 1))
    for stop in (0.0, 0.4, 1.0):
        model = Acceptance(rate, length, stop)
        outcomes = model.outcomes(1000)
        assert sum(probability for _, probability in outcomes) == pytest.approx(1)
        assert sum((one.accepted + 1) * probability for one, probability in outcomes) == pytest.approx(by_sum)
        assert model.tokens_per_round() == pytest.approx(by_sum)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.1, "draft_length": 4}, "acceptance rate 1.1 is out of range"),
        ({"rate": float("nan"), "draft_length": 4}, "acceptance rate nan is out of range"),
        ({"rate": 0.5, "draft_length": 0}, "draft length 0 is out of range"),
        ({"rate": 0.5, "draft_length": 4, "early_stop": -1}, "early stop -1 is out of range"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(SpeqError, match=message):
        Acceptance(**options)
