"""Chains of proposals from every position of a text at once: their loss, and how many of them are right.

A chain starts at position p with the model's hidden states there and the text's token p + 1, and proposes token p + 2.
Its next step reads its own output in place of hidden states, and the text's token p + 2, and proposes token p + 3; and
so on. A step attends to the first steps of all chains up to its own, as their keys lie in the cache of a text that has
been written, and to the earlier steps of its own chain (training-time test, EAGLE-3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from speq.training.head import Head
from speq.training.target import Tensor

DECAY = 0.8
"""Weight of a step's loss, relative to the step before: later proposals count only if earlier ones are right."""


@dataclass(frozen=True)
class Truth:
    """What chains are measured by.

    Attributes:
        tokens: the text ``[rows, length]``.
        chosen: the draft level's likeliest next token at each position, ``[rows, length]``.
        wanted: positions whose next token counts, ``[rows, length]`` of bool.
    """

    tokens: Tensor
    chosen: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Past:
    """First steps of chains that stand before a piece of text.

    Attributes:
        keys, values: ``[rows, kv_heads, past, head_dim]``.
        lengths: how many of them belong to each row, ``[rows]``; the piece goes on from there.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor


def unroll(head: Head, features: Tensor, tokens: Tensor, steps: int, past: Past | None = None) -> Iterator[Tensor]:
    """Outputs ``[rows, length, hidden]`` of each step of the chains that start at each position.

    Step s of the chain from position p proposes token ``p + 2 + s``. Where the text is too short for a step it reads
    the last token again, and its output means nothing.

    Args:
        head: the head.
        features: the model's hidden states at the taps, ``[rows, length, taps * hidden]``.
        tokens: the text, ``[rows, length]``.
        steps: proposals of a chain.
        past: what stands before the text, if anything does.
    """
    length = tokens.shape[1]
    at = torch.arange(length, device=tokens.device)
    chain = torch.eye(length, dtype=torch.bool, device=tokens.device)
    mask = at[:, None] >= at
    positions = at
    keys: list[Tensor] = []
    values: list[Tensor] = []
    if past is not None:
        before = torch.arange(past.keys.shape[2], device=tokens.device) < past.lengths[:, None, None, None]
        rows = (len(tokens), 1, length, -1)
        mask, chain = torch.cat([before.expand(rows), mask.expand(rows)], -1), chain.expand(rows)
        positions = past.lengths[:, None] + at
        keys.append(past.keys)
        values.append(past.values)
    hidden = head.fuse(features)
    for step in range(steps):
        read = tokens[:, (at + 1 + step).clamp(max=length - 1)]
        q, k, v = head.project(read, hidden, positions + step)
        keys.append(k)
        values.append(v)
        hidden = head.finish(hidden, head.attend(q, torch.cat(keys, 2), torch.cat(values, 2), mask))
        yield hidden
        mask = torch.cat([mask, chain], -1)


def chain_loss(head: Head, features: Tensor, truth: Truth, likely: Tensor, known: Tensor, steps: int) -> Tensor:
    """Mean cross entropy of the chains' proposals against the draft level's distributions.

    Proposals count where the draft level's choice is one of the head's tokens.

    Args:
        head: the head.
        features: see :func:`unroll`.
        truth: the text and the choices.
        likely: the draft level's probabilities of the head's tokens at each position, ``[rows, length, vocabulary]``.
        known: whether the head has each of the model's tokens, ``[model_vocabulary]`` of bool.
        steps: proposals of a chain.
    """
    counted = (truth.wanted & known[truth.chosen]).float()
    total = likely.new_zeros((), dtype=torch.float32)
    for step, hidden in enumerate(unroll(head, features, truth.tokens, steps)):
        first = 1 + step  # the chain from position p is measured at position p + 1 + step
        weights = counted[:, first:]
        logits = head.logits(hidden[:, : weights.shape[1]])
        entropy = F.cross_entropy(
            logits.flatten(0, 1).float(), likely[:, first:].flatten(0, 1).float(), reduction="none"
        )
        total = total + DECAY**step * (entropy * weights.flatten()).sum() / weights.sum().clamp(min=1)
    return total


@dataclass(frozen=True)
class Counts:
    """Chains that were right, by how many of their first proposals: ``right[s] / of[s]`` is the acceptance of all of
    the first s + 1 proposals.
    """

    right: tuple[int, ...]
    of: tuple[int, ...]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            tuple(a + b for a, b in zip(self.right, other.right, strict=True)),
            tuple(a + b for a, b in zip(self.of, other.of, strict=True)),
        )

    @property
    def acceptance(self) -> list[float]:
        """Share of chains whose first 1, 2, ... proposals are all right."""
        return [right / max(of, 1) for right, of in zip(self.right, self.of, strict=True)]


def count_right(head: Head, features: Tensor, truth: Truth, known_ids: Tensor, steps: int) -> Counts:
    """How many chains are right, against the draft level's choices.

    A chain of several proposals is counted where the text itself followed the draft level's choices so far; there, what
    the text's tokens lead to is what the draft level would have gone on with.

    Args:
        known_ids: the model's ids of the head's tokens, ``[vocabulary]``.
        head, features, truth, steps: as for :func:`chain_loss`.
    """
    right, of = [], []
    tokens, chosen = truth.tokens, truth.chosen
    followed = tokens[:, 1:] == chosen[:, :-1]  # at p: token p + 1 is what the draft level chose
    good: Tensor = torch.ones_like(truth.wanted)
    valid: Tensor = torch.ones_like(truth.wanted)
    with torch.no_grad():
        for step, hidden in enumerate(unroll(head, features, tokens, steps)):
            room = tokens.shape[1] - 1 - step
            if room < 1:
                right.append(0)
                of.append(0)
                continue
            proposed = known_ids[head.logits(hidden[:, :room]).argmax(-1)]
            good = good[:, :room] & (proposed == chosen[:, 1 + step :])
            valid = valid[:, :room] & truth.wanted[:, 1 + step :]
            if step:
                valid = valid & followed[:, step : step + room]
            right.append(int((good & valid).sum()))
            of.append(int(valid.sum()))
    return Counts(tuple(right), tuple(of))
