"""Traces: what is noted is what the engine was asked for, and it changes nothing."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import Cascade, Drafter, NoDrafter, Policy, Proposal, Request, SelfDrafter, generate_tokens
from speq.decoding.trace import Trace, check_writable, write_trace
from speq.errors import SpeqError
from speq.runtime.sampling import Sampling

PROMPT = [3, 1, 4, 1, 5]


def generate(engine, *, drafts=True, length=None, prompt=PROMPT, new=80):
    """(token ids, statistics, steps)."""
    trace = Trace()
    request = Request(
        prompt,
        Sampling(),
        SelfDrafter() if drafts else NoDrafter(),
        Policy(length),
        max_new_tokens=new,
        on_prefill=trace.on_prefill,
        on_round=trace.on_round,
    )
    pieces = generate_tokens(engine, request)
    return [token for piece in pieces for token in piece], request.stats, trace.steps


@settings(max_examples=25, deadline=None)
@given(
    noise=st.sampled_from([0.0, 0.7, 3.0]),
    length=st.one_of(st.none(), st.integers(1, 8)),
    prompt=st.integers(1, 600),
    new=st.integers(1, 90),
)
def test_steps_are_the_passes_of_the_engine(mock_engine, noise, length, prompt, new):
    engine = mock_engine(noise=noise)
    ids, stats, steps = generate(engine, length=length, prompt=[7] * prompt, new=new)

    prefill = [step for step in steps if "prefill" in step]
    rounds = [step for step in steps if "drafted" in step]
    assert steps == prefill + rounds
    assert sum(step["prefill"] for step in prefill) == prompt
    assert [step["drafted"] for step in rounds] == _drafted_per_round(engine.passes, len(prefill))
    for step in rounds:
        assert step["draft"] == [[1, step["context"] + i] for i in range(step["drafted"])]
    assert all(step["verify"] == step["drafted"] + 1 for step in rounds)
    assert sum(step["drafted"] for step in rounds) == stats.drafted
    assert sum(step["accepted"] for step in rounds) == stats.accepted
    context = prompt
    for step in rounds:
        assert step["context"] == context
        context += step["accepted"] + 1
    assert len(ids) == 1 + sum(step["accepted"] + 1 for step in rounds)


def _drafted_per_round(passes, prefills):
    """From the (tokens, draft) that the engine itself noted: drafts before each exact pass after the prefill."""
    counts, drafts, exact = [], 0, 0
    for tokens, draft in passes:
        if draft:
            drafts += 1
            continue
        exact += 1
        if exact > prefills:
            assert tokens == drafts + 1
            counts.append(drafts)
            drafts = 0
    return counts


def test_a_plain_step_is_a_round_without_a_draft(mock_engine):
    steps = generate(mock_engine(), drafts=False, new=4)[2]
    assert steps == [
        {"prefill": 5, "context": 0},
        {"draft": [], "drafted": 0, "verify": 1, "accepted": 0, "context": 5},
        {"draft": [], "drafted": 0, "verify": 1, "accepted": 0, "context": 6},
        {"draft": [], "drafted": 0, "verify": 1, "accepted": 0, "context": 7},
    ]


@settings(max_examples=25, deadline=None)
@given(noise=st.sampled_from([0.0, 0.7, 3.0]), length=st.integers(1, 16), nodes=st.integers(1, 6))
def test_a_pass_tells_how_far_its_proposal_was_tested_and_right(mock_engine, noise, length, nodes):
    """Also of a first stage's proposals, of which those beyond the end of a round are right all the same."""
    engine, told, rounds = mock_engine(noise=noise), [], []
    guesses = random.Random(nodes)

    class Guessing(Drafter):
        """Knows what the draft draws, and is wrong now and then; in one of two cases it tries another token, too."""

        def propose(self, context):
            yield from ()
            history, proposal, at = [*context.tokens, *context.tentative], Proposal(parents=[]), -1
            while len(proposal.tokens) < min(context.limit, nodes):
                best = int(engine.row(history, draft=True).argmax())
                for token in (best, (best + 1) % 61) if guesses.random() < 0.5 else ((best + 2) % 61, best):
                    if len(proposal.tokens) < min(context.limit, nodes) and guesses.random() < 0.9:
                        proposal.tokens.append(token)
                        proposal.confidences.append(0.5)
                        proposal.parents.append(at)
                if not proposal.tokens or best not in proposal.tokens[-2:]:
                    break
                at = len(proposal.tokens) - 1 - proposal.tokens[::-1].index(best)
                history.append(best)
            return proposal

        def learn(self, context, proposal, checked, drawn):
            depth, at = 0, -1
            while found := [
                index
                for index, parent in enumerate(proposal.parents)
                if parent == at and proposal.tokens[index] == drawn[at + 1].token
            ]:
                at, depth = found[0], depth + 1
            told.append((depth + (at in proposal.parents), depth))

    request = Request(
        PROMPT, Sampling(), Cascade(Guessing(), nodes), Policy(length), max_new_tokens=90, on_round=rounds.append
    )
    for _ in generate_tokens(engine, request):
        pass
    assert [(passed.tested, passed.accepted) for each in rounds for passed in each.passes] == told
    assert [each.verify.accepted for each in rounds] == [each.accepted for each in rounds]
    assert [each.verify.tested for each in rounds] == [min(each.accepted + 1, each.proposed) for each in rounds]


def test_the_seconds_of_a_drafter_itself_are_those_beside_its_passes(mock_engine):
    engine, rounds = mock_engine(draft_cost=0.3), []

    class Slow(SelfDrafter):
        def propose(self, context):
            engine.now += 5
            return (yield from super().propose(context))

        def learn(self, context, proposal, checked, drawn):
            engine.now += 2

    request = Request(PROMPT, Sampling(), Slow(), Policy(2), max_new_tokens=30, on_round=rounds.append)
    for _ in generate_tokens(engine, request, clock=engine.clock):
        pass
    assert [each.own_seconds for each in rounds] == pytest.approx([7.0] * len(rounds))
    assert rounds[0].passes[0].seconds == pytest.approx(0.3)


def test_a_file_has_a_header_and_a_line_per_step(tmp_path):
    path = tmp_path / "a.trace"
    steps = [
        {"prefill": 5, "context": 0},
        {"draft": [[1, 5], [1, 6]], "drafted": 2, "verify": 3, "accepted": 1, "context": 5},
    ]
    write_trace(path, {"model": "m", "new_tokens": 3}, steps)
    header, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    assert header == {"speq_trace": 2, "model": "m", "new_tokens": 3}
    assert rest == steps
    assert list(tmp_path.iterdir()) == [path]


def test_an_impossible_place_is_found_before_the_generation(tmp_path):
    with pytest.raises(SpeqError, match="no writable directory"):
        check_writable(tmp_path / "missing" / "a.trace")
    with pytest.raises(SpeqError, match="is a directory"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new.trace")
