"""Drafters: they propose the next tokens, cheaply and possibly wrongly.

A drafter is a coroutine. It never computes anything itself: it asks for tokens to be fed at a level, and gets what was
drawn after them, so that whoever runs the passes can compute what many sequences ask for together. Verification makes
any proposal safe, so a drafter may propose what it likes: what the draft codes of the weights draw, what stood in the
text before, or what one drafter proposes and a better one has checked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from speq.decoding.verify import Proposal, verify
from speq.runtime.batch import Level
from speq.runtime.sampling import Choice


@dataclass(frozen=True)
class Ask:
    """Tokens to feed after what the sequence has in the cache; something is drawn after each wanted one.

    Attributes:
        tokens, parents: a chain, or a tree by parents as in :class:`speq.runtime.batch.Span`.
        wanted: ascending indices of the tokens to draw after.
        confidences: whether it matters how sure the draws are.
    """

    tokens: Sequence[int]
    level: Level
    parents: Sequence[int] | None = None
    wanted: Sequence[int] = (0,)
    confidences: bool = False


Drawn: TypeAlias = Sequence[Choice]
"""What was drawn after the wanted tokens of an :class:`Ask`."""

Proposing: TypeAlias = Generator[Ask, Drawn, Proposal]


@dataclass(frozen=True)
class Context:
    """What a drafter knows of its sequence.

    Attributes:
        tokens: the sequence so far; all but the last are in the cache.
        limit: the most tokens to propose; 0 asks for an empty proposal.
        more: called with the confidences so far, tells whether another token is worth drafting.
        keep: of the last ask that fed several tokens, keep only those on a path; what is not kept is forgotten. What a
            drafter leaves in the cache is forgotten when it has proposed.
        ends: token ids that end the text; nothing is worth proposing after one.
    """

    tokens: Sequence[int]
    limit: int
    more: Callable[[Sequence[float]], bool]
    keep: Callable[[Sequence[int]], None]
    ends: frozenset[int] = frozenset()


class Drafter(Protocol):
    def propose(self, context: Context) -> Proposing:
        """Propose up to ``context.limit`` tokens that follow."""
        ...


class NoDrafter:
    """Plain decoding: nothing is proposed, and every verify pass yields one token."""

    def propose(self, context: Context) -> Proposing:
        yield from ()
        return Proposal()


class SelfDrafter:
    """The model drafts for itself from the 4-bit codes of its weights, with the draw that verification will repeat."""

    def propose(self, context: Context) -> Proposing:
        proposal = Proposal()
        token = context.tokens[-1]
        while len(proposal.tokens) < context.limit:
            ((token, confidence),) = yield Ask([token], "draft", confidences=True)
            proposal.tokens.append(token)
            proposal.confidences.append(confidence)
            at_end = token in context.ends
            if at_end or (len(proposal.tokens) < context.limit and not context.more(proposal.confidences)):
                break
        return proposal


class SuccessorDrafter:
    """Proposes what followed the last token when it stood in the text before: free, and right now and then."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._seen = 0

    def propose(self, context: Context) -> Proposing:
        yield from ()
        tokens, proposal = context.tokens, Proposal()
        for i in range(self._seen, len(tokens) - 1):
            self._next[tokens[i]] = tokens[i + 1]
        self._seen = max(len(tokens) - 1, 0)
        token = tokens[-1]
        while len(proposal.tokens) < context.limit and token in self._next and token not in context.ends:
            token = self._next[token]
            proposal.tokens.append(token)
            proposal.confidences.append(0.5)
        return proposal


class Cascade:
    """A cheap drafter proposes, a level of the model checks several of its tokens at once, and what that level draws
    is the proposal: the same tokens as without the cheap drafter, in fewer passes.

    Args:
        first: the cheap drafter.
        length: tokens it may propose at a time.
        level: what checks them.
    """

    def __init__(self, first: Drafter, length: int = 2, level: Level = "draft") -> None:
        self._first, self._length, self._level = first, length, level

    def propose(self, context: Context) -> Proposing:
        proposal = Proposal()
        while len(proposal.tokens) < context.limit:
            tokens = [*context.tokens, *proposal.tokens]
            room = min(self._length, context.limit - len(proposal.tokens) - 1)
            inner = Context(tokens, room, lambda _: True, context.keep, context.ends)
            first = yield from self._first.propose(inner)
            fed = [tokens[-1], *first.tokens]
            drawn = yield Ask(fed, self._level, first.rows(), range(len(fed)), confidences=True)
            checked = verify([choice.token for choice in drawn], first)
            context.keep(checked.path)
            for row, token in zip(checked.path, checked.tokens, strict=True):
                proposal.tokens.append(token)
                proposal.confidences.append(drawn[row].confidence)
                if token in context.ends:
                    return proposal
            if len(proposal.tokens) < context.limit and not context.more(proposal.confidences):
                break
        return proposal
