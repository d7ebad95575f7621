"""Drafters: they propose the next tokens, cheaply and possibly wrongly.

A drafter is a coroutine. It never computes anything itself: it asks for tokens to be fed at a level, and gets what was
drawn after them, so that whoever runs the passes can compute what many sequences ask for together. Verification makes
any proposal safe, so a drafter may propose what it likes: what the draft codes of the weights draw, what stood in the
text before, or what one drafter proposes and a better one has checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from speq.decoding.verify import Proposal, Verification, verify
from speq.runtime.batch import Level
from speq.runtime.sampling import GREEDY, Choice, Sampling


@dataclass(frozen=True)
class Ask:
    """Tokens to feed after what the sequence has in the cache; something is drawn after each wanted one.

    Attributes:
        tokens, parents: a chain, or a tree by parents as in :class:`speq.runtime.batch.Span`.
        wanted: ascending indices of the tokens to draw after.
        confidences: whether it matters how sure the draws are.
        likely: of how many of the most probable tokens each draw is to tell.
    """

    tokens: Sequence[int]
    level: Level
    parents: Sequence[int] | None = None
    wanted: Sequence[int] = (0,)
    confidences: bool = False
    likely: int = 0


Drawn: TypeAlias = Sequence[Choice]
"""What was drawn after the wanted tokens of an :class:`Ask`."""

Proposing: TypeAlias = Generator[Ask, Drawn, Proposal]


@dataclass(frozen=True)
class Context:
    """What a drafter knows of its sequence.

    Attributes:
        tokens: what is certain of the sequence so far.
        tentative: tokens after these that were drafted and may be dropped; all tokens but the last one of both are in
            the cache.
        limit: the most tokens to propose; 0 asks for an empty proposal.
        slots: tokens that can be fed before the cache is full.
        more: called with the confidences so far, tells whether another token is worth drafting.
        keep: of the last ask that fed several tokens, keep only those on a path; what is not kept is forgotten. What a
            drafter leaves in the cache is forgotten when it has proposed.
        cut: forget what is in the cache after so many tokens of the sequence.
        ends: token ids that end the text; nothing is worth proposing after one.
        sampling: how tokens are drawn.
    """

    tokens: Sequence[int]
    limit: int
    slots: int
    more: Callable[[Sequence[float]], bool]
    keep: Callable[[Sequence[int]], None]
    cut: Callable[[int], None]
    ends: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    tentative: Sequence[int] = ()

    @property
    def last(self) -> int:
        """The last token, which is not in the cache."""
        return self.tentative[-1] if self.tentative else self.tokens[-1]

    @property
    def position(self) -> int:
        """Where the next token will stand."""
        return len(self.tokens) + len(self.tentative)


class Drafter(ABC):
    """Serves one sequence.

    Attributes:
        likely: of how many of the most probable tokens it wants to learn when its proposals are checked.
    """

    likely: int = 0

    @abstractmethod
    def propose(self, context: Context) -> Proposing:
        """Propose up to ``context.limit`` tokens that follow."""

    def learn(  # noqa: B027, a drafter need not listen
        self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn
    ) -> None:
        """Hear what a pass over ``context.last`` and the proposal has drawn, and what stays of the proposal."""


class NoDrafter(Drafter):
    """Plain decoding: nothing is proposed, and every verify pass yields one token."""

    def propose(self, context: Context) -> Proposing:
        yield from ()
        return Proposal()


class SelfDrafter(Drafter):
    """The model drafts for itself from the 4-bit codes of its weights, with the draw that verification will repeat."""

    def propose(self, context: Context) -> Proposing:
        proposal = Proposal()
        token = context.last
        while len(proposal.tokens) < context.limit:
            ((token, confidence, _),) = yield Ask([token], "draft", confidences=True)
            proposal.tokens.append(token)
            proposal.confidences.append(confidence)
            at_end = token in context.ends
            if at_end or (len(proposal.tokens) < context.limit and not context.more(proposal.confidences)):
                break
        return proposal


class Cascade(Drafter):
    """A cheap drafter proposes, a level of the model checks several of its tokens at once, and what that level draws
    is the proposal: the same tokens as without the cheap drafter, in fewer passes.

    Args:
        first: the cheap drafter, whose proposals may be trees.
        nodes: tokens it may propose for a pass.
        level: what checks them.
    """

    def __init__(self, first: Drafter, nodes: int = 2, level: Level = "draft") -> None:
        self._first, self._nodes, self._level = first, nodes, level

    def propose(self, context: Context) -> Proposing:
        proposal = Proposal()
        while (left := context.limit - len(proposal.tokens)) > 0:
            inner = replace(
                context,
                tentative=[*context.tentative, *proposal.tokens],
                # The pass itself draws one token; where that is all there is room for, nothing is left to check.
                limit=min(self._nodes, context.slots - len(proposal.tokens) - 1) if left > 1 else 0,
                more=lambda _: True,
                slots=context.slots - len(proposal.tokens),
            )
            first = yield from self._first.propose(inner)
            context.cut(inner.position - 1)
            fed = [inner.last, *first.tokens]
            drawn = yield Ask(
                fed, self._level, first.rows(), range(len(fed)), confidences=True, likely=self._first.likely
            )
            checked = verify([choice.token for choice in drawn], first)
            self._first.learn(inner, first, checked, drawn)
            context.keep(checked.path)
            if len(checked.path) > left:
                context.cut(inner.position - 1 + left)
            for row, token in zip(checked.path[:left], checked.tokens[:left], strict=True):
                proposal.tokens.append(token)
                proposal.confidences.append(drawn[row].confidence)
                if token in context.ends:
                    return proposal
            if len(proposal.tokens) < context.limit and not context.more(proposal.confidences):
                break
        return proposal
