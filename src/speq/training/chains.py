"""Acceptance of a head on prompts, as drafting would meet it.

The exact level writes its greedy answer to each prompt. Every few tokens a round of the draft level begins: it goes on
by itself, greedily, over exact keys and values of everything before. From every position of a round the head proposes
a chain, from the hidden states and tokens that are known there, exact ones before the round and the draft level's own
in it; its first proposals are right as far as they are what the draft level writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.models.head_files import StoredHead
from speq.training.conversation import ANSWER, Turns
from speq.training.head import Head
from speq.training.target import Cache, Target, Tensor
from speq.training.unroll import Counts, Past, Truth, count_right, unroll
from speq.training.writing import Start, write

STEPS = 5
"""Proposals of a chain."""

WRITTEN = 12
"""Tokens that the draft level writes in a round."""

EVERY = 8
"""Tokens of the answer between two rounds."""

_CACHE_BYTES = 1 << 30
"""Of the caches of the rounds that are run together, about."""


@dataclass(frozen=True)
class Acceptance:
    """What was measured on some prompts.

    Attributes:
        prompts, chains: how many.
        agreement: share of the rounds whose first token is the exact level's.
        draft: share of chains whose first 1, 2, ... proposals are all what the draft level writes.
        exact: the same against the exact level's text, from its own hidden states.
        by_rows: tokens gained in a draft pass of 2, 3, ... rows, pass after pass through each round.
    """

    prompts: int
    chains: int
    agreement: float
    draft: list[float]
    exact: list[float]
    by_rows: dict[int, float]


def bind_head(stored: StoredHead, target: Target) -> tuple[Head, Tensor]:
    """A stored head on a target's device, and the ids of its tokens.

    Raises:
        SpeqError: it is a head of another model, or one that ``speq train-head`` has not trained.
    """
    stored = stored.of_model(target.config)
    if not stored.config.is_trained_here:
        raise SpeqError(f"the head {stored.path} has a structure that is not measured here: give one of our training")
    parameters = {
        name: torch.from_numpy(value).to(target.device, target.dtype) for name, value in stored.parameters.items()
    }
    return Head(stored.config, parameters, target.embedding), torch.from_numpy(stored.known).to(target.device)


def measure(
    target: Target, head: Head, known: Tensor, turns: Turns, prompts: Sequence[Sequence[int]], new_tokens: int = 128
) -> Acceptance:
    """Measure a head on prompts.

    Args:
        target: the model.
        head, known: see :func:`bind_head`.
        turns: the model's, to know where an answer ends.
        prompts: token ids up to where the model is to answer.
        new_tokens: of each answer, at most.

    Raises:
        SpeqError: no answer is long enough for a round.
    """
    with torch.no_grad():
        length = max(map(len, prompts)) + new_tokens + 1
        cache = Cache(target.config, len(prompts), length, target.embedding)
        written = write(target, turns, [Start(tuple(p), ANSWER, 0.0) for p in prompts], length, 0, cache=cache)
        ends = [len(p) + _answered(written.answers[row, len(p) :], new_tokens) for row, p in enumerate(prompts)]
        rounds = [(row, first) for row, prompt in enumerate(prompts) for first in range(len(prompt), ends[row], EVERY)]
        if not rounds:
            raise SpeqError("the model's answers to these prompts are too short to measure a head on")
        tokens = torch.from_numpy(written.tokens.astype(np.int64)).to(target.device)
        features = torch.cat([target.read(row[None], head.config.taps).features["exact"] for row in tokens])
        exact = _against_text(head, known, features, tokens, prompts, ends)
        hits, agreed = [], []
        at_once = max(1, _CACHE_BYTES * len(prompts) // cache.bytes)
        for first in range(0, len(rounds), at_once):
            some = torch.tensor(rounds[first : first + at_once], device=target.device)
            written_by_draft, drafted = _draft_rounds(target, head, cache, tokens, some)
            hits.append(_chains(head, known, features, tokens, some, written_by_draft, drafted))
            answered = [first + 1 < ends[row] for row, first in some.tolist()]
            following = tokens[some[:, 0], (some[:, 1] + 1).clamp(max=length - 1)]
            agreed.append((following == written_by_draft[:, 0]).cpu().numpy()[answered])
    right = np.concatenate(hits)
    return Acceptance(
        prompts=len(prompts),
        chains=right.shape[0] * right.shape[1],
        agreement=float(np.concatenate(agreed).mean()),
        draft=[float(share) for share in right.mean((0, 1))],
        exact=exact.acceptance,
        by_rows={count + 1: _gained(right[:, :, :count]) for count in range(1, STEPS + 1)},
    )


def _answered(answers: NDArray[np.bool_], most: int) -> int:
    """Tokens of the first answer."""
    stops = np.flatnonzero(~answers[:most])
    return int(stops[0]) if len(stops) else min(most, len(answers))


def _draft_rounds(target: Target, head: Head, cache: Cache, tokens: Tensor, rounds: Tensor) -> tuple[Tensor, Tensor]:
    """What the draft level writes after the token at which each round begins.

    Returns:
        Tokens ``[rounds, WRITTEN]``, and its hidden states at the taps ``[rounds, WRITTEN, taps * hidden]``, from the
        token at which the round begins on.
    """
    rows, first = rounds.unbind(1)
    own = Cache(target.config, len(rounds), cache.length + WRITTEN, target.embedding)
    own.keys[:, :, :, : cache.length], own.values[:, :, :, : cache.length] = cache.keys[:, rows], cache.values[:, rows]
    token = tokens[rows, first]
    written, features = [], []
    span = int(first.max()) + WRITTEN
    for step in range(WRITTEN):
        final, tapped = target.step("draft", token, first + step, own, span, head.config.taps)
        token = F.linear(final, target.head("draft")).argmax(-1)
        written.append(token)
        features.append(tapped)
    return torch.stack(written, 1), torch.stack(features, 1)


def _chains(
    head: Head, known: Tensor, features: Tensor, tokens: Tensor, rounds: Tensor, written: Tensor, drafted: Tensor
) -> NDArray[np.bool_]:
    """Whether the first 1, 2, ... proposals are all right: ``[rounds, starts, STEPS]``.

    Start 0 knows the exact level's hidden states before the round, start i > 0 the draft level's of its i-th token.
    """
    rows, first = rounds.unbind(1)
    length = tokens.shape[1]
    at = torch.arange(length - 1, device=tokens.device)
    _, keys, values = head.project(tokens[:, 1:], head.fuse(features[:, :-1]), at)
    past = Past(keys[rows], values[rows], first - 1)
    text = torch.cat([tokens[rows[:, None], first[:, None] + torch.tensor([-1, 0], device=tokens.device)], written], 1)
    read = torch.cat([features[rows, first - 1][:, None], drafted, drafted[:, -1:]], 1)
    starts = WRITTEN - STEPS + 1
    right = []
    good: Tensor = torch.ones((len(rounds), starts), dtype=torch.bool, device=tokens.device)
    for step, hidden in enumerate(unroll(head, read, text, STEPS, past)):
        proposed = known[head.logits(hidden[:, :starts]).argmax(-1)]
        good = good & (proposed == text[:, 2 + step : 2 + step + starts])
        right.append(good)
    return np.asarray(torch.stack(right, -1).cpu().numpy())


def _against_text(
    head: Head, known: Tensor, features: Tensor, tokens: Tensor, prompts: Sequence[Sequence[int]], ends: Sequence[int]
) -> Counts:
    """Chains against the exact level's own text."""
    total = Counts((0,) * STEPS, (0,) * STEPS)
    following = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1)
    at = torch.arange(tokens.shape[1], device=tokens.device)
    for row, prompt in enumerate(prompts):
        wanted = ((at >= len(prompt)) & (at + 1 < ends[row]))[None]
        truth = Truth(tokens[row : row + 1], following[row : row + 1], wanted)
        total += count_right(head, features[row : row + 1], truth, known, STEPS)
    return total


def _gained(right: NDArray[np.bool_]) -> float:
    """Tokens per draft pass when passes follow each other through each round, each checking a chain."""
    tokens = passes = 0
    starts = right.shape[1]
    for chains in right.sum(-1):
        place = 0
        while place < starts:
            gained = int(chains[place]) + 1
            tokens, passes, place = tokens + gained, passes + 1, place + gained
    return tokens / passes
