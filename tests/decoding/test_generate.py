"""The loop: speculation changes no token id, statistics add up, limits hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import (
    Cascade,
    NgramDrafter,
    NoDrafter,
    Policy,
    Request,
    SelfDrafter,
    Statistics,
    SuccessorTable,
    generate_tokens,
)
from speq.errors import SpeqError
from speq.runtime.sampling import Sampling

GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, seed=5)
PROMPT = [3, 1, 4, 1, 5]


DRAFTERS = {
    "self": SelfDrafter,
    "cascade": lambda: Cascade(NgramDrafter(SuccessorTable())),
    "ngram": lambda: NgramDrafter(SuccessorTable()),
}


def run(
    engine,
    prompt=PROMPT,
    *,
    sampling=GREEDY,
    speculate=True,
    length=None,
    may_pause=False,
    ends=(),
    drafter="self",
    **options,
):
    """Generate with a fresh policy; returns (token ids, statistics)."""
    stats = Statistics()
    request = Request(
        prompt,
        sampling,
        DRAFTERS[drafter]() if speculate else NoDrafter(),
        Policy(length, may_pause=may_pause),
        ends=frozenset(ends),
        stats=stats,
        **options,
    )
    pieces = generate_tokens(engine, request, clock=engine.clock)
    return [token for piece in pieces for token in piece], stats


def plain_truth(engine, sampling, count):
    """Plain decoding written out: logits of the whole history for each token."""
    from speq.runtime.sampling_reference import choose_reference

    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(choose_reference(engine.row(tokens), sampling, len(tokens)).token)
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(temperature=1.0, seed=1)])
def test_plain_decoding_is_the_textbook_loop(mock_engine, sampling):
    ids, stats = run(mock_engine(), sampling=sampling, speculate=False, max_new_tokens=60)
    assert ids == plain_truth(mock_engine(), sampling, 60)
    assert (stats.rounds, stats.drafted, stats.tokens_per_round) == (59, 0, 1.0)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("may_pause", [False, True])
@pytest.mark.parametrize(
    ("drafter", "length"),
    [
        *(("self", length) for length in [*range(1, 17), None]),
        *((drafter, length) for drafter in ("cascade", "ngram") for length in (1, 2, 3, 8, 16, None)),
    ],
)
def test_speculation_changes_no_token(mock_engine, sampling, length, may_pause, drafter):
    """Thousands of tokens for every draft length, with drafts that are perfect, good, poor and useless."""
    truth, _ = run(mock_engine(), sampling=sampling, speculate=False, max_new_tokens=150)
    for noise in (0.0, 0.5, 1.5, 50.0):
        engine = mock_engine(noise=noise)
        options = {"length": length, "may_pause": may_pause, "drafter": drafter}
        ids, stats = run(engine, sampling=sampling, max_new_tokens=150, **options)
        assert ids == truth
        assert stats.new_tokens == 150
        if noise == 0 and drafter != "ngram":
            assert stats.accepted == stats.drafted > 0


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    context=st.integers(2, 90),
    wanted=st.one_of(st.none(), st.integers(1, 100)),
    length=st.one_of(st.none(), st.integers(1, 16)),
    ends=st.sets(st.integers(0, 60), max_size=4),
    noise=st.sampled_from([0.0, 1.0, 9.0]),
    sampling=st.sampled_from([GREEDY, SAMPLED]),
    salt=st.integers(0, 9),
    drafter=st.sampled_from(list(DRAFTERS)),
)
def test_limits_and_ends_are_those_of_plain_decoding(
    mock_engine, prompt, context, wanted, length, ends, noise, sampling, salt, drafter
):
    if len(prompt) >= context:
        with pytest.raises(SpeqError, match=f"prompt has {len(prompt)} tokens and the model's context {context}"):
            run(mock_engine(context_length=context), prompt)
        return
    options = {"sampling": sampling, "ends": ends, "max_new_tokens": wanted}
    plain, _ = run(mock_engine(context_length=context, salt=salt), prompt, speculate=False, **options)
    engine = mock_engine(context_length=context, salt=salt, noise=noise)
    ids, stats = run(engine, prompt, length=length, drafter=drafter, **options)
    assert ids == plain
    limit = min(context - len(prompt), wanted or context)
    assert len(ids) == stats.new_tokens <= limit
    assert not set(ids[:-1]) & ends
    assert stats.finish_reason == ("stop" if ids[-1] in ends else "length")
    if stats.finish_reason == "length":
        assert len(ids) == limit


def test_statistics_add_up(mock_engine):
    engine = mock_engine(noise=1.0, draft_cost=0.25, verify_cost=(1.0,))
    ids, stats = run(engine, length=4, max_new_tokens=200)
    drafts = sum(draft for _, draft in engine.passes)
    verifies = sum(not draft for _, draft in engine.passes) - 1
    assert (stats.prompt_tokens, stats.new_tokens) == (len(PROMPT), len(ids))
    assert (stats.rounds, stats.drafted) == (verifies, drafts)
    assert 0 < stats.accepted < stats.drafted
    assert stats.new_tokens == 1 + stats.rounds + stats.accepted
    assert sum(stats.accepted_per_position) == stats.accepted
    assert stats.accepted_per_position == sorted(stats.accepted_per_position, reverse=True)
    assert len(stats.accepted_per_position) == 4
    assert stats.acceptance_rate == stats.accepted / stats.drafted
    assert stats.prefill_seconds == 1.0
    assert stats.draft_seconds == pytest.approx(0.25 * drafts)
    assert stats.verify_seconds == pytest.approx(verifies)
    assert stats.decode_seconds == pytest.approx(stats.draft_seconds + stats.verify_seconds)
    assert stats.tokens_per_second == pytest.approx(199 / stats.decode_seconds)


def test_statistics_of_a_single_token_are_finite(mock_engine):
    ids, stats = run(mock_engine(), max_new_tokens=1)
    assert len(ids) == 1
    assert (stats.tokens_per_second, stats.tokens_per_round, stats.acceptance_rate) == (0, 0, 0)


def test_nothing_is_drafted_beyond_the_limit_or_an_end(mock_engine):
    engine = mock_engine(noise=0.0)
    _, stats = run(engine, length=16, max_new_tokens=4)
    assert (stats.rounds, stats.drafted) == (1, 2)  # one token from the prefill, then two drafted and one more
    ids, _ = run(mock_engine(), speculate=False, max_new_tokens=30)
    end = next(i for i, token in enumerate(ids) if i > 3 and token not in ids[:i])
    stopped, stats = run(mock_engine(noise=0.0), length=16, max_new_tokens=30, ends=[ids[end]])
    assert stopped == ids[: end + 1]
    assert stats.drafted == end


def test_a_cached_prefix_is_not_computed_again(mock_engine):
    engine = mock_engine()
    truth, _ = run(mock_engine(), speculate=False, max_new_tokens=20)
    run(engine, [*PROMPT[:3], 9], max_new_tokens=5)
    engine.passes.clear()
    ids, stats = run(engine, max_new_tokens=20)
    assert ids == truth
    assert engine.passes[0] == (2, False)
    assert stats.prompt_tokens == len(PROMPT)


def test_a_long_prompt_reports_progress(mock_engine):
    prompt = [i % 61 for i in range(600)]
    reports = []
    ids, _ = run(mock_engine(), prompt, max_new_tokens=5, progress=lambda *report: reports.append(report))
    assert reports == [("prefill", 256, 600), ("prefill", 512, 600), ("prefill", 600, 600)]
    whole, _ = run(mock_engine(), prompt, max_new_tokens=5, speculate=False)
    assert ids == whole


def test_bad_prompts_are_refused(mock_engine):
    with pytest.raises(SpeqError, match="prompt is empty"):
        run(mock_engine(), [])
    for token in (-1, 61):
        with pytest.raises(
            SpeqError, match=f"token id {token} is outside the model's vocabulary: use ids from 0 to 60"
        ):
            run(mock_engine(), [1, token])


def test_logits_that_are_not_finite_stop_the_generation(mock_engine):
    class Broken(mock_engine):
        def row(self, history, draft=False):
            row = super().row(history, draft)
            return row if len(history) < 12 or draft else row * np.float32(np.nan)

    with pytest.raises(SpeqError, match="not finite"):
        run(Broken(), max_new_tokens=50)


def test_an_abandoned_generation_leaves_right_statistics(mock_engine):
    engine, stats = mock_engine(), Statistics()
    request = Request(PROMPT, GREEDY, SelfDrafter(), Policy(4), stats=stats)
    pieces = generate_tokens(engine, request, clock=engine.clock)
    taken = [next(pieces) for _ in range(5)]
    pieces.close()
    assert stats.new_tokens == sum(map(len, taken))
    assert (stats.finish_reason, stats.rounds) == ("interrupted", 4)
