"""The acceptance model: its averages are those of the probabilities it states."""

from __future__ import annotations

from itertools import islice

import pytest

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance


def rounds(count=20_000, **options):
    return list(islice(Acceptance(**options).rounds(), count))


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.976, 1.0])
@pytest.mark.parametrize("length", [1, 4, 16])
def test_each_token_is_accepted_with_the_rate(rate, length):
    some = rounds(rate=rate, draft_length=length)
    for position in range(length):
        share = sum(one.accepted > position for one in some) / len(some)
        assert share == pytest.approx(rate ** (position + 1), abs=2e-3)
    by_sum = sum(rate**k for k in range(length + 1))
    assert sum(one.accepted + 1 for one in some) / len(some) == pytest.approx(by_sum, abs=0.01)
    assert Acceptance(rate, length).tokens_per_round() == pytest.approx(by_sum)
    assert all(one.drafted == length for one in some)


def test_an_early_stop_saves_drafts_and_costs_no_token():
    full, half, all_ = (rounds(rate=0.8, draft_length=8, early_stop=share) for share in (0.0, 0.5, 1.0))
    assert [one.accepted for one in full] == [one.accepted for one in half] == [one.accepted for one in all_]
    assert all(one.drafted == one.accepted for one in all_)
    stopped = [a.drafted < b.drafted for a, b in zip(half, full, strict=True) if b.accepted < 8]
    assert sum(stopped) / len(stopped) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.1, "draft_length": 4}, "acceptance rate 1.1 is out of range"),
        ({"rate": 0.5, "draft_length": 0}, "draft length 0 is out of range"),
        ({"rate": 0.5, "draft_length": 4, "early_stop": -1}, "early stop -1 is out of range"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(SpeqError, match=message):
        Acceptance(**options)
