"""Recordings and replays: a replay is what would have happened, and nobody beats the clairvoyant."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import speq
from speq.bench.clairvoyant import Possible, fastest, optimum, walk
from speq.bench.recording import (
    Cost,
    RecordedText,
    Recording,
    look_back,
    mean_costs,
    read_recording,
    write_recording,
)
from speq.bench.replay import Costs, PassCost, RecordedEngine, replay
from speq.bench.replay_report import usual_policies
from speq.bench.results import read_csv, rows_of
from speq.bench.settings import parse_setting
from speq.cli import run
from speq.errors import SpeqError
from speq.runtime.batch import Batch, Span
from speq.runtime.sampling import GREEDY, Choice, Sampling
from speq.serving.api import Model

STEPPED = tuple(1.0 + 0.05 * n + 0.4 * (n > 6) for n in range(16))
SAMPLED = Sampling(0.9, seed=3)
NEW = 60


def engine_of(mock_engine, noise):
    return mock_engine(noise=noise, draft_cost=0.3, verify_cost=STEPPED, sequences=2)


def recorded(mock_engine, noise, sampling=GREEDY, prompts=((3, 1, 4), (1, 5)), ends=frozenset(), warm_ups=0):
    """A recording of texts of the mock engine, whose passes cost what they cost there."""
    engine = engine_of(mock_engine, noise)
    model = Model(engine, None, ends=ends)
    texts = []
    for at, prompt in enumerate(prompts):
        answer = model.generate(list(prompt), max_new_tokens=NEW, sampling=sampling, draft="none").token_ids
        draws, strays = look_back(engine, prompt, answer, sampling)
        groups = () if at < warm_ups else ("all", "f")
        texts.append(RecordedText(f"p/{at}", groups, list(prompt), answer, draws, strays))
    costs = [Cost("draft", rows, 64, 0.3) for rows in (1, 16)]
    costs += [Cost("exact", rows, 64, seconds) for rows, seconds in enumerate(STEPPED, 1)]
    costs.append(Cost("exact", 64, 64, STEPPED[-1]))
    made = {"date": "d", "machine": {"processor": "P", "threads": 1}, "model": {"name": "m"}, "settings": {}}
    sizes = {"vocab_size": engine.vocab_size, "limits": engine.limits, "new_tokens": NEW, "overhead": 0.0}
    return Recording(**made, **sizes, sampling=sampling, ends=ends, costs=costs, texts=texts)


def happened(mock_engine, noise, recording, setting):
    """(seconds, rounds) of each text as the engine itself would have them."""
    engine = engine_of(mock_engine, noise)
    model = Model(engine, None, ends=recording.ends, clock=engine.clock)
    found = []
    for text in recording.texts:
        rounds = []
        result = model.generate(
            text.prompt,
            max_new_tokens=NEW,
            sampling=recording.sampling,
            draft=setting.draft,
            draft_length=setting.length,
            on_round=rounds.append,
        )
        assert result.token_ids == text.answer
        found.append((result.stats.decode_seconds, [(each.proposed, each.accepted) for each in rounds]))
    return found


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("noise", [0.3, 1.5, 30.0])
@pytest.mark.parametrize("name", ["none", "self", "self:1", "self:7", "self:16"])
def test_a_replay_is_what_would_have_happened(mock_engine, noise, name, sampling):
    """To the last round and second, as draws after the draft's own wrong tokens are recorded, too."""
    recording, setting = recorded(mock_engine, noise, sampling), parse_setting(name)
    found = [
        (each.seconds, [(one.proposed, one.accepted) for one in each.rounds]) for each in replay(recording, setting)
    ]
    truth = happened(mock_engine, noise, recording, setting)
    assert [rounds for _, rounds in found] == [rounds for _, rounds in truth]
    assert [seconds for seconds, _ in found] == pytest.approx([seconds for seconds, _ in truth])


@pytest.mark.parametrize("name", ["auto", "ngram", "ngram:3", "cascade", "cascade:7"])
def test_first_stages_replay_nearly_as_they_are(mock_engine, name):
    """Nearly, as the table of successors does not hear what follows proposals that are dropped."""
    prompts = [[7, 8, 9] * 4, [7, 8, 9, 7], [2, 9]]
    recording, setting = recorded(mock_engine, 0.7, prompts=prompts), parse_setting(name)
    found = sum(each.seconds for each in replay(recording, setting))
    assert found == pytest.approx(sum(each for each, _ in happened(mock_engine, 0.7, recording, setting)), rel=0.05)


def test_an_answer_with_an_end_is_replayed_to_it_and_warm_ups_teach_but_do_not_count(mock_engine):
    whole = recorded(mock_engine, 0.5)
    end = frozenset([whole.texts[1].answer[20]])
    recording = recorded(mock_engine, 0.5, ends=end, warm_ups=1)
    assert len(recording.texts[1].answer) <= 21
    assert recording.texts[1].answer[-1] in end
    (found,) = replay(recording, parse_setting("self"))
    assert found.text is recording.texts[1]
    assert found.seconds == pytest.approx(happened(mock_engine, 0.5, recording, parse_setting("self"))[1][0])


@settings(max_examples=6, deadline=None)
@given(noise=st.sampled_from([0.0, 0.3, 1.0, 30.0]), seed=st.integers(0, 9), length=st.integers(1, 16))
def test_nobody_beats_the_clairvoyant(mock_engine, noise, seed, length):
    recording = recorded(mock_engine, noise, Sampling(0.9, seed=seed), prompts=([7, 8] * 5, [1, 5]))
    names = ["none", "auto", "self", f"self:{length}", "ngram", f"ngram:{length}", "cascade", f"cascade:{length}"]
    replays = {name: replay(recording, parse_setting(name)) for name in names}
    costs = Costs(recording)
    # Whoever drafts with the draft level alone is beaten even by one who has seen no replay at all.
    for at, blind in enumerate(optimum(recording.texts, [], recording.sampling, costs)):
        assert all(blind.chains <= replays[name][at].seconds + 1e-9 for name in names if "self" in name)
        assert blind.chains <= replays["none"][at].seconds + 1e-9
    best = optimum(recording.texts, replays.values(), recording.sampling, costs)
    for at, each in enumerate(best):
        assert each.whole <= each.chains + 1e-9
        assert all(each.whole <= replayed[at].seconds + 1e-9 for replayed in replays.values())


def brute_force(text, possible, costs, place):
    """Every sequence of rounds: any passes one after the other, then any beginning of what they gave."""
    known, end = len(text.prompt), len(text.prompt) + len(text.answer)
    if place >= end:
        return 0.0

    def right(at):
        return text.draws["draft"][at - known].token == text.answer[at - known]

    found = []
    for count, accepted in {0: 0, **possible.to_exact.get(place, {})}.items():
        seconds = costs.whole("exact", count + 1, place - 1)
        found.append(seconds + brute_force(text, possible, costs, place + accepted + 1))

    def drafted(at, seconds):
        for to in range(place + 1, at + 1):
            good = next((n for n in range(to - place) if not right(place + n)), to - place)
            whole = seconds + costs.whole("exact", to - place + 1, place - 1)
            found.append(whole + brute_force(text, possible, costs, place + good + 1))
        for count, accepted in {0: 0, **possible.to_draft.get(at, {})}.items():
            # Beyond a wrong token nothing more is gained, and what stands there is not the text.
            if at + accepted + 1 <= end and all(right(each) for each in range(place, at)):
                drafted(at + accepted + 1, seconds + costs.whole("draft", count + 1, at - 1))

    drafted(place, 0.0)
    return min(found)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), length=st.integers(1, 6))
def test_the_clairvoyant_is_the_best_of_all_courses(data, length):
    draws = [Choice(5, 0.5)] * (length + 1)
    wrong = [data.draw(st.booleans()) for _ in range(length)]
    draft = [Choice(6 if bad else 5, 0.5) for bad in wrong] + [Choice(5, 0.5)]
    text = RecordedText("p", ("all",), [1, 2], [5] * length, {"draft": draft, "exact": draws})
    options = st.dictionaries(st.integers(1, 3), st.integers(0, 3), max_size=2)
    possible = Possible(
        *({at: data.draw(options) for at in range(3, length + 2)} for _ in range(2)),
    )
    for each in (possible.to_draft, possible.to_exact):
        for at, own in each.items():
            each[at] = {count: min(count, accepted, length + 1 - at) for count, accepted in own.items()}
    steps = data.draw(st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12))
    rising = np.cumsum(steps) + 0.3
    costs = [Cost("exact", n, 4, float(rising[n + 3])) for n in range(1, 9)]
    costs += [Cost("draft", n, 4, float(rising[n - 1])) for n in range(1, 5)]
    fields = dict.fromkeys(("date", "machine", "model", "settings", "vocab_size", "limits", "new_tokens"))
    recording = Recording(**fields, sampling=GREEDY, ends=frozenset(), overhead=0.1, costs=costs, texts=[text])
    table = Costs(recording)
    assert fastest(text, possible, table) == pytest.approx(brute_force(text, possible, table, 3))


def test_the_walk_knows_what_a_first_stage_would_have_right(mock_engine):
    """In a text that repeats itself, everything after the first time round; at the draft level only what it draws."""
    answer = [7, 8, 9] * 8
    exact = [Choice(token, 0.9, [(token, 0.9)]) for token in [*answer, 7]]
    draft = [Choice(1, 0.9) if at == 12 else choice for at, choice in enumerate(exact)]
    text = RecordedText("p", ("all",), [7, 8, 9], answer, {"draft": draft, "exact": exact}, {12: [Choice(1, 0.9)]})
    (possible,) = walk([text], GREEDY)
    assert possible.to_exact[6][3] == 3
    assert possible.to_draft[6][3] == 3
    assert possible.to_exact[14][3] == 3
    assert possible.to_draft[14][3] == 1  # place 15 holds answer 12


def test_costs_are_lines_between_what_was_measured_and_never_fall():
    made = [
        Cost("exact", rows, context, s)
        for rows, context, s in [
            (1, 100, 1.0),
            (4, 100, 1.6),
            (8, 100, 1.5),
            (1, 300, 1.2),
            (4, 300, 1.8),
            (8, 300, 2.0),
        ]
    ]
    cost = PassCost(made)
    assert [cost(rows, 100) for rows in (1, 2, 4, 8)] == pytest.approx([1.0, 1.2, 1.6, 1.6])
    assert [cost(1, context) for context in (0, 100, 200, 300, 400)] == pytest.approx([1.0, 1.0, 1.1, 1.2, 1.3])
    assert cost(12, 300) == pytest.approx(2.2)
    (mean,) = mean_costs([made[:1], [replace(made[0], seconds=2.0)]])
    assert mean == replace(made[0], seconds=1.5)


def test_the_engine_answers_along_the_text_the_stray_and_nothing_else(mock_engine):
    recording = recorded(mock_engine, 1.5)
    text = recording.texts[0]
    at = min(text.strays)
    engine = RecordedEngine(recording)
    engine.play(text)
    kv = engine.kv.open()
    before = text.tokens[: len(text.prompt) + at]
    engine.run(Batch([Span(kv, before)]))
    stray = text.strays[at]
    tokens = [text.answer[at], stray[0].token, stray[1].token, (stray[1].token + 1) % 61]
    span = Span(kv, tokens, [-1, -1, 1, 1], range(4), GREEDY, likely=2)
    found = engine.run(Batch([span], "draft")).drawn(0)
    assert found[0].token == text.draws["draft"][at + 1].token
    assert [choice.token for choice in found[1:3]] == [stray[1].token, stray[2].token]
    assert (found[3].confidence, found[3].likely) == (0.5, [])
    assert all(len(choice.likely) == 2 for choice in found[:3])
    with pytest.raises(SpeqError, match="holds no hidden states"):
        engine.run(Batch([Span(kv, [1])], "draft", taps=("a",)))


def test_recordings_come_back_from_a_file(mock_engine, tmp_path):
    recording = recorded(mock_engine, 1.0, SAMPLED, ends=frozenset([60]), warm_ups=1)
    recording = replace(recording, texts=[replace(text, measured={"auto": (59, 1.25)}) for text in recording.texts])
    write_recording(recording, tmp_path / "a.rec")
    assert [path.name for path in tmp_path.iterdir()] == ["a.rec"]
    found = read_recording(tmp_path / "a.rec")
    for name in ("machine", "sampling", "ends", "limits", "overhead", "costs"):
        assert getattr(found, name) == getattr(recording, name)
    for one, other in zip(found.texts, recording.texts, strict=True):
        assert (one.id, one.groups, one.tokens, one.measured) == (other.id, other.groups, other.tokens, other.measured)
        assert set(one.strays) == set(other.strays)
        for level in ("draft", "exact"):
            for a, b in zip(one.draws[level], other.draws[level], strict=True):
                assert (a.token, pytest.approx(a.confidence, abs=1e-6)) == (b.token, b.confidence)
                assert [token for token, _ in a.likely] == [token for token, _ in b.likely]
    for setting in usual_policies():
        assert replay(found, setting)[0].seconds > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "is not a recording"),
        (lambda lines: ["no json"], "line 1: no line of a recording"),
        (lambda lines: ['{"speq_trace": 2}'], "is a trace of passes"),
        (lambda lines: [json.dumps({**lines[0], "speq_recording": 9})], "of version 9; this speq reads 1"),
        (lambda lines: [{**lines[0], "speq_recording": True}, *lines[1:]], "of version True"),
        (lambda lines: lines[:1], "holds no texts"),
        (lambda lines: [{**lines[0], "costs": lines[0]["costs"][:2]}, *lines[1:]], "costs of both levels"),
        (lambda lines: [{**lines[0], "overhead": float("inf")}, *lines[1:]], "are no seconds"),
        (lambda lines: [{**lines[0], "limits": {"context": 9}}, *lines[1:]], "line 1: no line of a recording"),
        (lambda lines: [{k: v for k, v in lines[0].items() if k != "ends"}, *lines[1:]], "'ends' is missing"),
        (lambda lines: [lines[0], {**lines[1], "answer": lines[1]["answer"][1:]}], "line 2"),
        (lambda lines: [lines[0], {**lines[1], "answer": []}], "there is no prompt, no answer"),
        (lambda lines: [lines[0], {**lines[1], "strays": lines[1]["strays"][1:]}], "the strays do not begin"),
        (lambda lines: [lines[0], {**lines[1], "draft": 3}], "line 2"),
        (lambda lines: [lines[0], {**lines[1], "prompt": [99]}], "outside the vocabulary"),
        (lambda lines: [lines[0], {**lines[1], "exact": lines[1]["draft"]}], "the exact draws are not the answer"),
    ],
)
def test_what_is_no_recording_is_said_in_one_line(mock_engine, tmp_path, change, said, capsys):
    path = tmp_path / "a.rec"
    write_recording(recorded(mock_engine, 1.5), path)
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    assert run(["bench", "replay", str(path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


@pytest.fixture
def prompt_file(tmp_path):
    lines = [json.dumps({"id": f"p/{at}", "category": "c", "turns": [f"hi {at} hi {at}"]}) for at in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path / "prompts.jsonl"


def test_prompts_are_recorded_and_replayed(tiny_converted, slow_memory, tmp_path, prompt_file, capsys):
    out = tmp_path / "tiny.rec"
    options = ["--prompts", str(prompt_file), "--new-tokens", "12", "--rounds", "1", "--threads", "1"]
    draws = ["--temperature", "0.8", "--seed", "5", "--draft", "auto", "--draft", "self:3"]
    assert run(["bench", "record", str(tiny_converted), str(out), *options, *draws]) == 0
    assert capsys.readouterr().out == f"{out}: 3 of 3 prompts\n"
    model = speq.load(tiny_converted, threads=1)
    found = read_recording(out)
    assert (found.sampling, found.new_tokens) == (Sampling(0.8, seed=5), 12)
    answer = model.generate("hi 1 hi 1", max_new_tokens=12, sampling=found.sampling, draft="none").token_ids
    assert next(text for text in found.texts if text.id == "p/1").answer == answer
    assert [text.warms_up for text in found.texts] == [True, True, False, False, False]
    kept = ["--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert run(["bench", "replay", str(out), str(out), *kept]) == 0
    shown = capsys.readouterr().out
    assert "of the clairvoyant's tokens per second" in shown
    rows = json.loads((tmp_path / "r.json").read_text())["results"]["replay"]
    assert rows_of(read_csv(tmp_path / "r.csv"), "replay") == [
        {key: value for key, value in row.items() if value is not None} for row in rows
    ]
    whole = {row["policy"]: row for row in rows if row["category"] == "all"}
    assert {"none", "auto", "self:7", "cascade:15", "clairvoyant"} <= set(whole)
    assert all(row["texts"] == 6 and row["clairvoyant_ratio"] <= 1 + 1e-9 for row in whole.values())
    assert {name for name, row in whole.items() if row["measured_rate"]} == {"none", "auto", "self:3"} & set(whole)
    assert whole["none"]["speed_up"] == pytest.approx(1)
    assert max(row["fixed_ratio"] for name, row in whole.items() if ":" in name or name == "none") == pytest.approx(1)


def test_an_interrupted_recording_keeps_its_texts(
    tiny_converted, slow_memory, tmp_path, prompt_file, monkeypatch, capsys
):
    from speq.bench import recording

    taken, whole = [], recording.look_back

    def interrupted(*arguments):
        taken.append(arguments)
        if len(taken) == 5:  # two warm up
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(recording, "look_back", interrupted)
    out = tmp_path / "tiny.rec"
    options = ["--prompts", str(prompt_file), "--new-tokens", "6", "--rounds", "1", "--threads", "1"]
    assert run(["bench", "record", str(tiny_converted), str(out), *options]) == 130
    assert capsys.readouterr().out == f"{out}: 2 of 3 prompts\n"
    assert [text.id for text in read_recording(out).texts][2:] == ["p/0", "p/1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "tiny.rec"]


def test_a_draft_that_needs_more_than_is_recorded_is_left_out_unless_it_is_asked_for(
    mock_engine, tmp_path, capsys, monkeypatch
):
    from speq.decoding.drafters import Ask, Drafter

    class Tapping(Drafter):
        def propose(self, context):
            yield Ask([context.last], "draft")
            raise SpeqError("a recording holds no hidden states")

    usual = Model._drafter
    monkeypatch.setattr(Model, "_drafter", lambda self, draft: Tapping() if draft == "ngram" else usual(self, draft))
    write_recording(recorded(mock_engine, 1.0), tmp_path / "a.rec")
    assert run(["bench", "replay", str(tmp_path / "a.rec"), "--json", str(tmp_path / "a.json")]) == 0
    assert "note: left out ngram: a recording holds no hidden states" in capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())["results"]["replay"]
    assert "cascade" in {row["policy"] for row in rows}
    assert not any(row["policy"].startswith("ngram") for row in rows)
    assert run(["bench", "replay", str(tmp_path / "a.rec"), "--policy", "ngram"]) == 1
    assert "holds no hidden states" in capsys.readouterr().err


def test_recordings_of_different_models_do_not_mix(mock_engine, tmp_path, capsys):
    one = recorded(mock_engine, 1.0)
    write_recording(one, tmp_path / "a.rec")
    write_recording(replace(one, model={"name": "other"}), tmp_path / "b.rec")
    assert run(["bench", "replay", str(tmp_path / "a.rec"), str(tmp_path / "b.rec")]) == 1
    assert "are of different models or samplings" in capsys.readouterr().err
