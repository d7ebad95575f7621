"""Drafters that callers bring along: they change no token, and their mistakes end their own text in one line."""

from __future__ import annotations

import pytest

import speq
from speq.serving.api import Model


@pytest.fixture
def model(mock_engine):
    return Model(mock_engine(sequences=4), None, name="mock")


def drafter_of(act):
    """A class of drafters that propose by ``act(context)``, a generator function."""

    class Own(speq.Drafter):
        def propose(self, context):
            return act(context)

    return Own


def asking(context):
    """Two tokens of the draft level, fed one after the other; then as many as fit beside a wild guess."""
    tokens, confidences = [], []
    while len(tokens) < min(context.limit, 2):
        last = tokens[-1] if tokens else context.tokens[-1]
        ((token, confidence, _),) = yield speq.Ask([last], "draft", confidences=True)
        tokens.append(token)
        confidences.append(confidence)
    return speq.Proposal(tokens, confidences)


def guessing(context):
    """A tree of all tokens that fit, without a pass."""
    count = min(context.limit, 8)
    yield from ()
    return speq.Proposal(list(range(count)), [0.1] * count, parents=[-1] * count)


@pytest.mark.parametrize("act", [asking, guessing])
@pytest.mark.parametrize("sampling", [speq.Sampling(), speq.Sampling(temperature=1.0, seed=3)])
def test_no_drafter_changes_a_token(model, act, sampling):
    plain = model.generate([1, 2, 3], max_new_tokens=60, draft="none", sampling=sampling)
    own = model.generate([1, 2, 3], max_new_tokens=60, draft=drafter_of(act), sampling=sampling)
    assert own.token_ids == plain.token_ids
    assert own.draft == "Own"
    assert own.stats.accepted > 0


def test_every_text_has_a_drafter_of_its_own(model):
    made = []

    class Counting(speq.Drafter):
        def __init__(self):
            made.append(self)

        propose = staticmethod(guessing)

    model.generate_many([[1], [2], [3]], max_new_tokens=5, draft=Counting)
    assert len(made) == 3


def no_proposal(context):
    yield from ()


def proposing(*arguments, **options):
    def act(context):
        yield from ()
        return speq.Proposal(*arguments, **options)

    return act


def asks(*arguments, **options):
    def act(context):
        while True:
            yield speq.Ask(*arguments, **options)

    return act


def yields(what):
    def act(context):
        yield what

    return act


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (yields([1, 2]), "yielded list: yield a speq.Ask"),
        (no_proposal, "returned NoneType: return a Proposal"),
        (proposing([5] * 40, [0.5] * 40), "proposed 40 tokens: propose at most context.limit"),
        (proposing([61], [0.5]), "used the token id 61: use ids from 0 to 60"),
        (proposing([-1], [0.5]), "used the token id -1"),
        (proposing([5], []), "gave 0 confidences for 1 tokens"),
        (proposing([5], [1.5]), "gave a confidence outside of 0 to 1"),
        (proposing([5, 6], [0.5, 0.5], parents=[0, -1]), "gave the parents [0, -1] of 2 tokens"),
        (asks([99], "draft"), "used the token id 99"),
        (asks([], "draft"), "asked for a pass over 0 tokens"),
        (asks([1] * 257, "draft"), "asked for a pass over 257 tokens: ask for 1 to"),
        (asks([1], "half"), "asked for the level 'half': ask for draft or exact"),
        (asks([1, 2], "draft", wanted=(1, 0)), "wants draws after [1, 0]: give ascending indices below 2"),
        (asks([1], "draft", likely=9), "wants the 9 most probable tokens: ask for 0 to 8"),
        (asks([1, 2], "draft", parents=[-1, 1]), "gave the parents [-1, 1] of 2 tokens"),
        (asks([1] * 64, "draft"), "fed more than the context of 1000 tokens: heed context.limit"),
    ],
)
def test_a_drafters_mistake_ends_its_own_text_alone(model, act, said):
    alone = model.generate([7, 8], max_new_tokens=30, draft="none").token_ids
    other = model.stream([7, 8], max_new_tokens=30)
    bad = model.stream([1, 2, 3], max_new_tokens=30, draft=drafter_of(act))
    next(other)
    with pytest.raises(speq.SpeqError) as caught:
        list(bad)
    assert str(caught.value).startswith("the drafter Own ")
    assert said in str(caught.value)
    for _ in other:
        pass
    assert other.result.token_ids == alone


def test_what_makes_no_drafter_is_said(model):
    with pytest.raises(speq.SpeqError, match="the draft list makes no drafter"):
        model.stream([1], draft=list)
    with pytest.raises(speq.SpeqError, match="there is no draft 'other'"):
        model.stream([1], draft="other")
