"""The scheduler on a mock engine: every text is what it is alone, nobody starves, and no page or token is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import (
    Cascade,
    NgramDrafter,
    NoDrafter,
    Policy,
    Request,
    Scheduler,
    SelfDrafter,
    SuccessorTable,
    generate_tokens,
)
from speq.runtime.sampling import Sampling

DRAFTERS = [
    NoDrafter,
    SelfDrafter,
    lambda: Cascade(NgramDrafter(SuccessorTable())),
    lambda: NgramDrafter(SuccessorTable()),
]
SAMPLINGS = [Sampling(), Sampling(temperature=0.9, top_k=20, seed=5)]


def request(index, prompt=5, new=20):
    """One of several kinds, by its number."""
    tokens = [(7 * index + i) % 61 for i in range(prompt)]
    return Request(tokens, SAMPLINGS[index % 2], DRAFTERS[index % 4](), Policy(1 + index % 5), max_new_tokens=new)


def alone(mock_engine, asked):
    plain = Request(asked.prompt, asked.sampling, NoDrafter(), Policy(), max_new_tokens=asked.max_new_tokens)
    return [token for piece in generate_tokens(mock_engine(context_length=700), plain) for token in piece]


def text(sequence):
    return sequence.tokens[len(sequence.request.prompt) :]


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300), st.integers(1, 25)), min_size=1, max_size=6),
    arrivals=st.lists(st.integers(0, 8), min_size=6, max_size=6),
    room=st.integers(1, 4),
    leaver=st.integers(0, 5),
)
def test_every_text_is_what_it_is_alone(mock_engine, kinds, arrivals, room, leaver):
    """Arrivals and a departure at any time, with more requests than there is room for."""
    engine = mock_engine(noise=0.7, sequences=room, context_length=700)
    scheduler = Scheduler(engine, engine.clock)
    sequences = [scheduler.prepare(request(*kind)) for kind in kinds]
    waiting = list(zip(arrivals, sequences, strict=False))
    steps = 0
    while waiting or scheduler.running:
        while waiting and (waiting[0][0] <= 0 or not scheduler.running):
            scheduler.add(waiting.pop(0)[1])
        waiting = [(left - 1, sequence) for left, sequence in waiting]
        scheduler.step()
        steps += 1
        if steps == 6 and leaver < len(sequences):
            scheduler.remove(sequences[leaver])
        assert steps < 2000, "somebody starves"
    for index, sequence in enumerate(sequences):
        expected = alone(mock_engine, sequence.request)
        assert text(sequence) == expected[: len(text(sequence))]
        assert index == leaver or text(sequence) == expected
    engine.kv.forget()
    assert engine.kv.used_pages == 0


def test_a_long_prompt_gets_through_beside_texts(mock_engine):
    engine = mock_engine(sequences=3, context_length=700)
    scheduler = Scheduler(engine, engine.clock)
    others = [scheduler.prepare(request(4 * i, new=400)) for i in range(2)]  # one row in every exact pass
    for sequence in others:
        scheduler.add(sequence)
    for _ in range(5):
        scheduler.step()
    late = scheduler.prepare(request(3, prompt=600, new=2))
    scheduler.add(late)
    for _ in range(20):
        scheduler.step()
    assert late.ended
    assert all(len(text(sequence)) > 15 for sequence in others)


def test_texts_go_on_while_a_prompt_of_a_whole_pass_waits(mock_engine):
    """It was asked for when nobody else was there."""
    engine = mock_engine(sequences=2, context_length=700)
    scheduler = Scheduler(engine, engine.clock)
    first, second = (scheduler.prepare(request(0, prompt=prompt, new=30)) for prompt in (600, 5))
    scheduler.add(first)
    scheduler.step()
    scheduler.add(second)
    for _ in range(12):
        scheduler.step()
    assert len(text(first)) > 1
    assert len(text(second)) > 5


def test_sequences_share_passes(mock_engine):
    engine = mock_engine(sequences=4)
    scheduler = Scheduler(engine, engine.clock)
    for index in range(4):
        scheduler.add(scheduler.prepare(request(4 * index, new=30)))
    while scheduler.running:
        scheduler.step()
    assert engine.passes == [(20, False), *[(4, False)] * 29]


class Interruption(Exception):
    pass


@pytest.mark.parametrize("where", ["before", "after", "take", "extend", "keep"])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 13, 21])
def test_an_exception_anywhere_in_a_step_loses_no_token(mock_engine, monkeypatch, where, at):
    """Before or after a pass, between two sequences whose tokens it brought, within a change of the cache."""
    engine = mock_engine(noise=0.7, sequences=3, context_length=700)
    scheduler = Scheduler(engine, engine.clock)
    sequences = [scheduler.prepare(request(index, prompt=20 + index)) for index in (1, 2, 4)]
    for sequence in sequences:
        scheduler.add(sequence)
    calls = 0

    def interrupting(call, *, first):
        def interrupted(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at and first:
                raise Interruption
            result = call(*arguments, **options)
            if calls == at:
                raise Interruption
            return result

        return interrupted

    owner, name = {
        "before": (engine, "run"),
        "after": (engine, "run"),
        "take": (engine.kv, "_hold"),
        "extend": (engine.kv, "extend"),
        "keep": (engine.kv, "keep"),
    }[where]
    monkeypatch.setattr(owner, name, interrupting(getattr(owner, name), first=where in ("before", "keep")))
    while scheduler.running:
        try:
            scheduler.step()
        except Interruption:
            continue
    for sequence in sequences:
        assert text(sequence) == alone(mock_engine, sequence.request)
    engine.kv.forget()
    assert engine.kv.used_pages == 0
