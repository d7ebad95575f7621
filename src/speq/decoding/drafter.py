"""Drafters: they propose the next tokens, cheaply and possibly wrongly.

A drafter sees all tokens so far, the last of which is not in the cache yet, and leaves the cache as it found it. It
asks ``more`` after each token whether to go on, which is how the controller stops an unsure draft early. Verification
makes any proposal safe, so a drafter may use whatever it likes: the draft codes of the weights here, a look-up or
another drafter elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from speq.decoding.engine import Engine
from speq.decoding.sampling import Sampling, choose


@dataclass
class Draft:
    """Proposed tokens and, for each, the drafter's confidence in 0..1 (see :class:`speq.decoding.sampling.Choice`)."""

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


class Drafter(Protocol):
    def propose(self, tokens: Sequence[int], limit: int, more: Callable[[Sequence[float]], bool]) -> Draft:
        """Propose up to ``limit`` tokens that follow ``tokens``.

        Args:
            tokens: the sequence so far; all but the last are in the cache. limit: the most tokens to propose; 0 gives
            an empty draft. more: called with the confidences so far after each token but the last possible one;
            ``False`` ends the draft.
        """


class NoDrafter:
    """Plain decoding: nothing is proposed, and every verify pass yields one token."""

    def propose(self, tokens: Sequence[int], limit: int, more: Callable[[Sequence[float]], bool]) -> Draft:
        return Draft()


class SelfDrafter:
    """The model drafts for itself from the 4-bit codes of its weights, with the draw that verification will repeat.

    Args:
        engine: the model; its cache gets approximate entries that verification overwrites.
        sampling: seeded sampling options, the same as the verifier's.
        ends: token ids that end the text; nothing is drafted after one.
    """

    def __init__(self, engine: Engine, sampling: Sampling, ends: frozenset[int] = frozenset()) -> None:
        self._engine = engine
        self._sampling = sampling
        self._ends = ends

    def propose(self, tokens: Sequence[int], limit: int, more: Callable[[Sequence[float]], bool]) -> Draft:
        draft = Draft()
        start = self._engine.length
        token = tokens[-1]
        while len(draft.tokens) < limit:
            logits = self._engine.forward([token], draft=True)
            token, confidence = choose(logits[0], self._sampling, len(tokens) + len(draft.tokens))
            draft.tokens.append(token)
            draft.confidences.append(confidence)
            if token in self._ends or (len(draft.tokens) < limit and not more(draft.confidences)):
                break
        self._engine.truncate(start)
        return draft
