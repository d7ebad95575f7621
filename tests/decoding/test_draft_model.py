"""Another model as first stage: it changes no token, keeps up with the text, and computes no more than it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import Cascade, NoDrafter, Policy, Request, Scheduler, Statistics
from speq.decoding.draft_model import ModelDrafter
from speq.decoding.drafters import Straight
from speq.limits import QUICK_ROWS
from speq.runtime.sampling import Sampling

SAMPLINGS = [Sampling(), Sampling(0.8, top_k=8, top_p=0.95, seed=3), Sampling(1.4, seed=5)]
STAGES = {
    "straight": Straight,
    "checked": lambda first: Cascade(first, 4),
    "either": lambda first: Cascade(first, may_skip=True),
    "bare": lambda first: first,
    "twice": lambda first: Cascade(Cascade(first, 3), 2),
}


def generate(engine, drafters, prompts, sampling, *, length=None, new=50, ends=frozenset(), **policy):
    """The texts of these prompts, generated together, and their statistics."""
    scheduler = Scheduler(engine, engine.clock)
    sequences = []
    for prompt, drafter in zip(prompts, drafters, strict=True):
        request = Request(list(prompt), sampling, drafter, Policy(length, **policy), new, ends, Statistics())
        sequences.append(scheduler.prepare(request))
        scheduler.add(sequences[-1])
    while scheduler.running:
        assert not [chunk.error for chunk in scheduler.step() if chunk.error]
    texts = [each.tokens[len(prompt) :] for each, prompt in zip(sequences, prompts, strict=True)]
    return texts, [each.request.stats for each in sequences]


@settings(max_examples=60, deadline=None)
@given(
    stage=st.sampled_from(list(STAGES)),
    nodes=st.integers(0, 15),
    length=st.one_of(st.none(), st.integers(1, 16)),
    sampling=st.sampled_from(SAMPLINGS),
    vocabularies=st.sampled_from([(12, 12), (12, 9), (9, 12)]),
    contexts=st.sampled_from([(300, 300), (66, 300), (300, 40)]),
    salt=st.integers(0, 1),
    prompts=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=60), min_size=1, max_size=4),
    data=st.data(),
)
def test_no_draft_model_changes_a_token(
    mock_engine, stage, nodes, length, sampling, vocabularies, contexts, salt, prompts, data
):
    """Of several texts at once, some of which begin alike; with other vocabularies and contexts than the model's."""
    prompts += [[*prompts[0][: data.draw(st.integers(1, len(prompts[0])))], 1, 2]]
    options = {"vocab_size": vocabularies[0], "context_length": contexts[0], "sequences": 5}
    ends = frozenset(data.draw(st.sets(st.integers(0, 8), max_size=1)))
    plain, _ = generate(
        mock_engine(**options), [NoDrafter() for _ in prompts], prompts, sampling, ends=ends, may_pause=True
    )
    other = mock_engine(vocabularies[1], contexts[1], sequences=5, salt=salt, noise=0.3)
    drafters = [STAGES[stage](ModelDrafter(other, vocabularies[0], nodes)) for _ in prompts]
    found, _ = generate(
        mock_engine(**options), drafters, prompts, sampling, length=length, ends=ends, may_pause=stage == "either"
    )
    assert found == plain
    other.kv.forget()
    assert other.kv.used_pages == 0


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "hot"])
def test_a_model_that_draws_alike_is_always_right(mock_engine, sampling):
    """Sampled draws take the same noise, so the same model is right about each, at whatever temperature."""
    for stage in ("straight", "bare"):
        drafter = STAGES[stage](ModelDrafter(mock_engine(noise=0.0), 61))
        _, (stats,) = generate(mock_engine(), [drafter], [[3, 1, 4]], sampling, length=7)
        assert stats.accepted == stats.drafted > 0
        assert stats.rounds < 15


def test_a_prompt_passes_the_other_model_while_it_passes_the_model(mock_engine):
    """At the exact level and in large passes; only its last tokens are left for the first proposal."""
    other, prompt = mock_engine(noise=0.0), [i % 61 for i in range(700)]
    model, before = mock_engine(), []

    class Watched(ModelDrafter):
        def propose(self, context):
            before.append(list(other.passes))
            return super().propose(context)

    generate(model, [Watched(other, 61)], [prompt], SAMPLINGS[0], length=4)
    assert sum(rows for rows, _ in before[0]) == len(prompt) - QUICK_ROWS + 1
    assert not any(draft for _, draft in before[0])
    assert len(before[0]) == 3
    drafted = other.passes[len(before[0]) :]
    assert all(draft and rows <= QUICK_ROWS for rows, draft in drafted)


def test_a_text_that_begins_alike_is_not_read_again(mock_engine):
    other, prompt = mock_engine(noise=0.0), [i % 61 for i in range(400)]
    for count in (1, 2):
        before = sum(rows for rows, _ in other.passes)
        generate(mock_engine(), [ModelDrafter(other, 61)], [prompt], SAMPLINGS[0], length=4, new=5)
        assert (sum(rows for rows, _ in other.passes) - before < 40) == (count == 2)


def test_what_is_drafted_in_vain_is_forgotten_and_what_was_right_is_kept(mock_engine):
    """The other model reads every token of the text once, and those that were wrong once more."""
    other = mock_engine(noise=0.0)
    _, (stats,) = generate(mock_engine(), [ModelDrafter(other, 61)], [[3, 1, 4]], SAMPLINGS[0], length=5, new=100)
    assert sum(rows for rows, _ in other.passes) <= 103 + stats.rounds
    wrong = mock_engine(noise=0.0, salt=1)
    _, (stats,) = generate(mock_engine(), [ModelDrafter(wrong, 61)], [[3, 1, 4]], SAMPLINGS[0], length=5, new=50)
    assert stats.accepted < 0.2 * stats.drafted


def test_another_model_computes_for_several_texts_in_one_pass(mock_engine):
    counts = []
    for number in (1, 4):
        other = mock_engine(noise=0.0, sequences=4)
        drafters = [ModelDrafter(other, 61) for _ in range(number)]
        prompts = [[3, 1, 4, at] for at in range(number)]
        generate(mock_engine(noise=0.0, sequences=4), drafters, prompts, SAMPLINGS[1], length=5, new=40)
        counts.append(len(other.passes))
    assert counts[1] < 1.5 * counts[0]


def test_an_aside_costs_the_drafter_its_share(mock_engine):
    """Two texts that ask for as many rows pay half of a pass each, as their drafters' own time."""

    class Slow(mock_engine):
        def run(self, batch):
            model.now += 1.0
            return super().run(batch)

    model, rounds = mock_engine(noise=0.0, sequences=2), []
    other = Slow(noise=0.0, sequences=2)
    scheduler = Scheduler(model, model.clock)
    for at in range(2):
        drafter = Straight(ModelDrafter(other, 61))
        request = Request([3, 1, at], SAMPLINGS[0], drafter, Policy(3), 20, on_round=rounds.append)
        scheduler.add(scheduler.prepare(request))
    while scheduler.running:
        scheduler.step()
    drafted = [each for each in rounds if each.own_seconds]
    assert len(drafted) > 4
    assert sum(each.own_seconds for each in rounds) == pytest.approx(len(other.passes))
    assert min(each.own_seconds for each in drafted) < 1.7


def test_nothing_is_proposed_that_is_not_worth_a_row(mock_engine):
    """Whoever checks says how many tokens he would take; a pass for more of them would be in vain."""
    other = mock_engine(noise=0.0)

    class Sparing(Cascade):
        def _worth_of(self, inner, confidences):
            return lambda first: min(2, len(first.tokens))

    generate(mock_engine(noise=0.0), [Sparing(ModelDrafter(other, 61))], [[3, 1, 4]], SAMPLINGS[0], length=9, new=40)
    assert len(other.passes) <= 3 * 40 / 3 + 5


def test_numbers_that_overflow_propose_nothing(mock_engine):
    class Overflowing(mock_engine):
        def row(self, history, draft=False):
            return super().row(history, draft) * np.float32(np.nan if len(history) % 3 else 1)

    plain, _ = generate(mock_engine(), [NoDrafter()], [[3, 1, 4]], SAMPLINGS[0])
    found, (stats,) = generate(mock_engine(), [ModelDrafter(Overflowing(), 61)], [[3, 1, 4]], SAMPLINGS[0], length=5)
    assert found == plain
    assert 0 < stats.drafted < 50


@pytest.mark.parametrize("where", ["run", "extend", "_hold"])
def test_an_interruption_within_the_other_model_loses_no_token(mock_engine, monkeypatch, where):
    plain, _ = generate(mock_engine(), [NoDrafter()], [[3, 1, 4, 1, 5] * 30], SAMPLINGS[1])
    for at in range(1, 30, 3):
        other, calls = mock_engine(noise=0.0, sequences=2), []
        owner = other if where == "run" else other.kv
        original = getattr(owner, where)

        def interrupted(*arguments, original=original, calls=calls, at=at, **options):
            result = original(*arguments, **options)
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(owner, where, interrupted)
        scheduler = Scheduler(mock_engine())
        drafter = Cascade(ModelDrafter(other, 61), 4)
        sequence = scheduler.prepare(Request([3, 1, 4, 1, 5] * 30, SAMPLINGS[1], drafter, Policy(5), 50))
        scheduler.add(sequence)
        interruptions = 0
        while scheduler.running:
            try:
                scheduler.step()
            except KeyboardInterrupt:
                interruptions += 1
        assert sequence.tokens[150:] == plain[0]
        assert interruptions == (at <= len(calls))
        other.kv.forget()
        assert other.kv.used_pages == 0
