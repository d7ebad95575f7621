"""Traces: what the recorder notes is what the engine was asked for, and it changes nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import Controller, NoDrafter, Sampling, SelfDrafter, Statistics, generate_tokens
from speq.decoding.trace import Recorder, check_writable, write_trace
from speq.errors import SpeqError

PROMPT = [3, 1, 4, 1, 5]


def generate(engine, *, drafts=True, length=None, prompt=PROMPT, new=80):
    stats = Statistics()
    pieces = generate_tokens(
        engine,
        prompt,
        sampling=Sampling(),
        drafter=SelfDrafter(engine, Sampling()) if drafts else NoDrafter(),
        controller=Controller(length),
        stats=stats,
        max_new_tokens=new,
    )
    return [token for piece in pieces for token in piece], stats


@settings(max_examples=25, deadline=None)
@given(
    noise=st.sampled_from([0.0, 0.7, 3.0]),
    length=st.one_of(st.none(), st.integers(1, 8)),
    prompt=st.integers(1, 600),
    new=st.integers(1, 90),
)
def test_steps_are_the_passes_of_the_engine(mock_engine, noise, length, prompt, new):
    engine = mock_engine(noise=noise)
    recorder = Recorder(engine)
    ids, stats = generate(recorder, length=length, prompt=[7] * prompt, new=new)
    assert ids == generate(mock_engine(noise=noise), length=length, prompt=[7] * prompt, new=new)[0]

    prefill = [step for step in recorder.steps if "prefill" in step]
    rounds = [step for step in recorder.steps if "drafted" in step]
    assert recorder.steps == prefill + rounds
    assert sum(step["prefill"] for step in prefill) == prompt
    assert [step["drafted"] for step in rounds] == _drafted_per_round(engine.passes, len(prefill))
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
    recorder = Recorder(mock_engine())
    generate(recorder, drafts=False, new=4)
    assert recorder.steps == [
        {"prefill": 5, "context": 0},
        {"drafted": 0, "accepted": 0, "context": 5},
        {"drafted": 0, "accepted": 0, "context": 6},
        {"drafted": 0, "accepted": 0, "context": 7},
    ]


def test_a_file_has_a_header_and_a_line_per_step(tmp_path):
    path = tmp_path / "a.trace"
    steps = [{"prefill": 5, "context": 0}, {"drafted": 2, "accepted": 1, "context": 5}]
    write_trace(path, {"model": "m", "new_tokens": 3}, steps)
    header, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    assert header == {"speq_trace": 1, "model": "m", "new_tokens": 3}
    assert rest == steps
    assert list(tmp_path.iterdir()) == [path]


def test_an_impossible_place_is_found_before_the_generation(tmp_path):
    with pytest.raises(SpeqError, match="no writable directory"):
        check_writable(tmp_path / "missing" / "a.trace")
    with pytest.raises(SpeqError, match="is a directory"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new.trace")
