"""Text that the model writes itself: the turns of a template, what is drawn, and where turns end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from speq.errors import SpeqError
from speq.models.tokenizer import Tokenizer
from speq.training import writing
from speq.training.conversation import ANSWER, USER, Turns, read_turns
from speq.training.target import Cache, Target
from speq.training.writing import Start, beginnings, write

TURNS = Turns((1, 2), ((90, 5, 6), (91, 7)), (ANSWER, USER), frozenset([92]))


@pytest.fixture(scope="module")
def target(random_model):
    return Target(*random_model(), "cpu")


def test_the_turns_of_a_template_are_the_text_between_what_is_said(tiny_checkpoint):
    tokenizer = Tokenizer(tiny_checkpoint)
    turns = read_turns(tokenizer)
    texts = [tokenizer.decode(ids, skip_special=False) for ids in (turns.opening, *turns.closing)]
    assert texts == ["<|turn|>user: ", "<|turn|>assistant: ", "<|turn|>user: "]
    assert (turns.first, turns.after, turns.ends) == (USER, (ANSWER, USER), frozenset([257]))


def test_a_model_without_a_template_writes_texts_from_beginning_to_end(write_checkpoint, tmp_path):
    path = write_checkpoint(tmp_path / "plain")
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin|>", "eos_token": "<|end|>"}))
    turns = read_turns(Tokenizer(path))
    assert (turns.opening, turns.closing[turns.first], turns.first) == ((257,), (257,), ANSWER)


def test_a_template_that_changes_what_is_said_is_refused(write_checkpoint, tmp_path):
    path = write_checkpoint(tmp_path / "loud")
    template = "{% for m in messages %}<|turn|>{{ m.content | upper }}{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
    with pytest.raises(SpeqError, match="--text FILE"):
        read_turns(Tokenizer(path))


def test_turns_are_closed_with_their_own_tokens_and_only_answers_are_marked(target, monkeypatch):
    monkeypatch.setattr(writing, "LONGEST_TURN", (5, 9))
    given = (1, 2, 33, 34)
    written = write(target, TURNS, [Start(given, USER, 1.0), Start((1, 2), ANSWER, 0.0)], 120, seed=3)
    lengths = set()
    for row, (begin, speaker) in enumerate(((len(given), USER), (2, ANSWER))):
        tokens, answers = written.tokens[row].tolist(), written.answers[row].tolist()
        assert not any(answers[:begin])
        place = begin
        while place < len(tokens):
            closing = TURNS.closing[speaker]
            said = 0
            while place + said < len(tokens) and tokens[place + said] != closing[0]:
                said += 1
            if place + said == len(tokens):
                break
            end = place + said + 1
            assert said < writing.LONGEST_TURN[speaker]
            assert 92 not in tokens[place:end]
            assert answers[place:end] == [speaker == ANSWER] * (said + 1)
            rest = list(closing[1:])[: len(tokens) - end]
            assert tokens[end : end + len(rest)] == rest
            assert not any(answers[end : end + len(rest)])
            lengths.add(said + 1)
            place, speaker = end + len(rest), TURNS.after[speaker]
    assert {5, 9} <= lengths


def test_given_tokens_stand_and_greedy_ones_are_the_likeliest(target):
    prompts = [(1, 2, 3), (1, 2, 3, 40, 41, 42, 43)]
    cache = Cache(target.config, 2, 60, target.embedding)
    written = write(target, TURNS, [Start(prompt, ANSWER, 0.0) for prompt in prompts], 60, seed=0, cache=cache)
    tokens = torch.from_numpy(written.tokens.astype(np.int64))
    likeliest = target.chosen("exact", target.read(tokens, (1,)).final["exact"]).numpy()
    for row, prompt in enumerate(prompts):
        assert tuple(written.tokens[row, : len(prompt)]) == prompt
        first = np.flatnonzero(~written.answers[row, len(prompt) :])
        end = len(prompt) + (first[0] if len(first) else 60 - len(prompt)) - 1  # the last one may end the turn
        assert end > len(prompt)
        assert np.array_equal(written.tokens[row, len(prompt) : end], likeliest[row, len(prompt) - 1 : end - 1])
    again = Cache(target.config, 2, 60, target.embedding)
    for place in range(59):
        target.step("exact", tokens[:, place], torch.tensor([place, place]), again, 60)
    torch.testing.assert_close(cache.keys, again.keys)


def test_draws_follow_the_seed_and_the_probabilities(target, monkeypatch):
    """The first token after one context, drawn many times: as often as the truncated distribution says."""
    monkeypatch.setattr(writing, "MIN_P", 0.1)
    rows = 2000
    draw = [write(target, TURNS, [Start((1, 2, 3), ANSWER, 1.0)] * rows, 4, seed=seed).tokens for seed in (5, 5, 6)]
    assert np.array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])
    final = target.read(torch.tensor([[1, 2, 3]]), (1,)).final["exact"][0, -1]
    p = torch.softmax(torch.nn.functional.linear(final, target.head("exact")), -1).numpy().astype(np.float64)
    p[p < 0.1 * p.max()] = 0
    p[[92]] = 0
    p /= p.sum()
    shares = np.bincount(draw[0][:, 3], minlength=97) / rows
    assert (p > 0).sum() > 3
    assert not shares[p == 0].sum() > p[91] + 0.05
    np.testing.assert_allclose(shares[p > 0], p[p > 0], atol=4 * np.sqrt(p.max() / rows))


def test_beginnings_do_not_depend_on_how_rows_are_grouped():
    openings = [(10,), (11, 12), (13,)]
    whole = beginnings(TURNS, openings, 20, 0, 7)
    assert whole == [*beginnings(TURNS, openings, 8, 0, 7), *beginnings(TURNS, openings, 12, 8, 7)]
    assert {start.temperature for start in whole} == set(writing.ANSWER_TEMPERATURES)
    begun = [start.tokens[2:] for start in whole]
    assert () in begun
    assert set(begun) & set(openings)
    assert all(start.tokens[:2] == (1, 2) and start.speaker == USER for start in whole)
