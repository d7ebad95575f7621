"""Reading traces: what the recorder writes, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speq.decoding import Policy, Request, SelfDrafter, generate_tokens
from speq.decoding.trace import VERSION as WRITTEN
from speq.decoding.trace import Trace, write_trace
from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Round
from speq.hardware.simulator.trace import VERSION, read_trace
from speq.runtime.sampling import Sampling

TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"
HEADER = {"speq_trace": 1, "prompt_tokens": 5, "new_tokens": 4}
STEPS = [
    {"prefill": 3, "context": 2},
    {"drafted": 2, "accepted": 1, "context": 5},
    {"drafted": 0, "accepted": 0, "context": 7},
]
# The same in version 2.
SECOND = HEADER | {"speq_trace": 2}
ROUND = {"draft": [[1, 5], [1, 6]], "drafted": 2, "verify": 3, "accepted": 1, "context": 5}
PLAIN = {"draft": [], "drafted": 0, "verify": 1, "accepted": 0, "context": 7}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_is_recorded_is_read(mock_engine, tmp_path):
    recorded = Trace()
    request = Request(
        [1, 2, 3],
        Sampling(),
        SelfDrafter(),
        Policy(4),
        max_new_tokens=50,
        on_prefill=recorded.on_prefill,
        on_round=recorded.on_round,
    )
    ids = list(generate_tokens(mock_engine(), request))
    path = tmp_path / "a.jsonl"
    write_trace(path, {"prompt_tokens": 3, "new_tokens": request.stats.new_tokens}, recorded.steps)
    trace = read_trace(path)
    assert VERSION == WRITTEN
    assert (trace.prompt_tokens, trace.cached, trace.new_tokens) == (3, 0, 50)
    assert [one.accepted + 1 for one in trace.rounds] == [len(piece) for piece in ids[1:]]
    assert sum(one.drafted for one in trace.rounds) == request.stats.drafted


def test_both_versions_of_a_generation_are_the_same_rounds(tmp_path):
    first = read_trace(write(tmp_path / "a.jsonl", HEADER, *STEPS))
    second = read_trace(write(tmp_path / "b.jsonl", SECOND, STEPS[0], ROUND, PLAIN))
    assert first.rounds == second.rounds == (Round(2, 1), Round(0, 0))
    assert first.rounds[0].draft_passes == ((1, 0), (1, 1))
    assert first.rounds[0].verify_rows == 3


def test_passes_over_several_rows_are_read(tmp_path):
    """Three rows of which two stay, then one; verified as a tree that has a row beside the proposal."""
    steps = [STEPS[0], ROUND | {"draft": [[3, 5], [1, 7]], "verify": 4}, PLAIN]
    rounds = read_trace(write(tmp_path / "a.jsonl", SECOND, *steps)).rounds
    assert rounds == (Round(2, 1, ((3, 0), (1, 2)), 4), Round(0, 0))
    assert rounds[0].draft_passes == ((3, 0), (1, 2))
    assert rounds[0].verify_rows == 4


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_traces_of_the_repository_are_read(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rounds = [(line["drafted"], line["accepted"]) for line in lines if "drafted" in line]
    trace = read_trace(path)
    assert [(one.drafted, one.accepted) for one in trace.rounds] == rounds
    assert trace.new_tokens == lines[0]["new_tokens"]


def test_cached_tokens_need_no_prefill(tmp_path):
    trace = read_trace(write(tmp_path / "a.jsonl", HEADER, *STEPS))
    assert trace.cached == 2
    assert trace.rounds == (Round(2, 1), Round(0, 0))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER | {"speq_trace": 3}, *STEPS], "is a trace of version 3; this speq reads versions 1 and 2"),
        ([HEADER | {"speq_trace": True}, *STEPS], "is a trace of version True; this speq reads versions 1 and 2"),
        ([SECOND, STEPS[0], STEPS[1]], "line 3: draft is None; it must be a list of pairs"),
        ([SECOND, STEPS[0], ROUND | {"draft": [1, 1]}], "line 3: draft is .*; it must be a list of pairs"),
        ([SECOND, STEPS[0], ROUND | {"draft": [[1]]}], "line 3: draft is .*; it must be a list of pairs"),
        ([SECOND, STEPS[0], ROUND | {"draft": [[0, 5]]}], "line 3: a draft pass of this round cannot be part of it"),
        ([SECOND, STEPS[0], ROUND | {"draft": [[1, 4]]}], "line 3: a draft pass of this round cannot be part of it"),
        ([SECOND, STEPS[0], ROUND | {"draft": [[True, 5]]}], "line 3: rows is True; it must be a count"),
        ([SECOND, STEPS[0], ROUND | {"draft": [[10**9, 5]]}], "line 3: rows is more than 256"),
        ([SECOND, STEPS[0], ROUND | {"verify": 2}], "line 3: 2 rows cannot verify what was drafted"),
        ([SECOND, STEPS[0], ROUND | {"verify": None}], "line 3: verify is None; it must be a count"),
        ([{"text": "hello"}], "is not a trace"),
        ([], "not a line of a trace"),
        ([[1, 2]], "not a line of a trace"),
        ([HEADER, STEPS[0], {"drafted": 1, "accepted": 2, "context": 5}], "line 3: this round does not follow"),
        ([HEADER, STEPS[0], {"drafted": 2, "accepted": 1, "context": 6}], "line 3: this round does not follow"),
        ([HEADER, STEPS[0], {"drafted": -1, "accepted": 0, "context": 5}], "line 3: drafted is -1; it must be a count"),
        ([HEADER, STEPS[0], {"drafted": 1, "context": 5}], "line 3: accepted is None; it must be a count"),
        (
            [HEADER, STEPS[0], {"drafted": 10**9, "accepted": 1, "context": 5}],
            "line 3: drafted is more than 64,",
        ),
        ([HEADER, STEPS[0], {"drafted": 10**400, "accepted": 1, "context": 5}], "line 3: drafted is more than 64"),
        (
            [HEADER, STEPS[0], {"drafted": 1.0, "accepted": 1, "context": 5}],
            "line 3: drafted is 1.0; it must",
        ),
        ([HEADER, STEPS[0], {"drafted": float("nan"), "accepted": 1, "context": 5}], "line 3: drafted is nan; it must"),
        ([HEADER, STEPS[0], {"drafted": True, "accepted": 1, "context": 5}], "line 3: drafted is True; it must"),
        ([HEADER | {"prompt_tokens": 10**12}], "line 1: prompt_tokens is more than 1,048,576, the most"),
        ([HEADER | {"format": 3}, *STEPS], "line 1: format is 3; it must be the name of a format"),
        ([HEADER, *STEPS[:2]], "is incomplete"),
        ([HEADER, *STEPS[1:]], "is incomplete"),
        ([HEADER, {"prefill": 9, "context": 0}], "a prefill of 9 tokens for a prompt of 5"),
    ],
)
def test_a_wrong_trace_is_one_clear_line(tmp_path, lines, message):
    with pytest.raises(SpeqError, match=message) as caught:
        read_trace(write(tmp_path / "a.jsonl", *lines))
    assert "a.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"drafted": ' + "9" * 5000 + "}"])
def test_lines_that_no_parser_takes_are_one_clear_line(tmp_path, line):
    path = write(tmp_path / "a.jsonl", HEADER, STEPS[0])
    path.write_text(path.read_text() + line)
    with pytest.raises(SpeqError, match="line 3: not a line of a trace"):
        read_trace(path)


def test_the_format_of_the_drafts_is_read(tmp_path):
    assert read_trace(write(tmp_path / "a.jsonl", HEADER, *STEPS)).format is None
    assert read_trace(write(tmp_path / "a.jsonl", HEADER | {"format": "nested"}, *STEPS)).format == "nested"


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(SpeqError, match="there is no trace"):
        read_trace(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpeqError, match="cannot read the trace"):
        read_trace(tmp_path / "binary")
