"""Drafters: they propose the next tokens, cheaply and possibly wrongly.

A drafter is a coroutine. It runs no pass of the model itself: it asks for tokens to be fed at a level, and gets what
was drawn after them, so that whoever runs the passes can compute what many sequences ask for together. Verification
makes any proposal safe, so a drafter may propose what it likes: what the draft codes of the weights draw, what stood in
the text before, or what one drafter proposes and a better one has checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from speq.decoding.verify import Proposal, Verification, verify
from speq.limits import MOST_CHECKED
from speq.runtime.batch import Level
from speq.runtime.sampling import GREEDY, Choice, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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


Work = TypeVar("Work")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class Aside(Generic[Work, Answer]):
    """Something to compute beside the model, by a head or another model, before a drafter goes on.

    Attributes:
        place: what computes. Whoever asks for the same place at the same time is served together.
        run: computes several pieces of work there.
        work: what to compute.
        rows: that this takes there, and ``most_rows`` that are computed together.
        answer: to the work, when the drafter goes on.
    """

    place: object
    run: Callable[[Sequence[Work]], Sequence[Answer]]
    work: Work
    rows: int
    most_rows: int
    answer: Answer | None = None


Asked: TypeAlias = Ask | Aside[Any, Any]

Proposing: TypeAlias = Generator[Asked, Drawn, Proposal]
"""What a drafter runs as. After an :class:`Aside` nothing was drawn."""


class Advice(Protocol):
    """What a drafter with a first stage asks whoever knows what passes cost, and tells him."""

    def asks(self) -> bool:
        """Whether to ask the first stage for a proposal at all."""
        ...

    def worth(self, proposal: Proposal, confidences: Sequence[float]) -> int:
        """How many of the first tokens of a proposal are worth a row in a draft pass, after drafted tokens with
        ``confidences``.
        """
        ...

    def straight(self, proposal: Proposal, *, or_draft: bool) -> int | None:
        """How many of the first tokens of a proposal to give to the exact level; ``None`` drafts instead, if that is
        possible.
        """
        ...

    def learn(self, proposal: Proposal, checked: Verification) -> None:
        """Hear how a first stage's proposal fared, at whatever level, of which perhaps only a beginning was checked."""
        ...


@dataclass(frozen=True)
class Context:
    """What a drafter knows of its sequence.

    Attributes:
        tokens: what is certain of the sequence so far.
        tentative: tokens after these that were drafted and may be dropped; all tokens but the last one of both are in
            the cache.
        limit: the most tokens to propose; 0 asks for an empty proposal.
        slots: tokens that can be fed before the cache is full.
        more: called with the confidences of what was drafted so far, tells whether another token is worth drafting.
        keep: of the last ask that fed several tokens, keep only those on a path; what is not kept is forgotten. What a
            drafter leaves in the cache is forgotten when it has proposed.
        cut: forget what is in the cache after so many tokens of the sequence.
        ends: token ids that end the text; nothing is worth proposing after one.
        sampling: how tokens are drawn.
        advice: on proposals of a first stage.
        worth: how many of the first tokens of a proposal will be fed if nothing is added to it; ``None`` for all. For
            drafters to whom a longer proposal costs time.
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
    advice: Advice | None = None
    worth: Callable[[Proposal], int] | None = None

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
        taps: names of the hidden states that it reads. Every pass over its sequence then keeps them, those over the
            prompt too.
    """

    likely: int = 0
    taps: tuple[str, ...] = ()

    @abstractmethod
    def propose(self, context: Context) -> Proposing:
        """Propose up to ``context.limit`` tokens that follow."""

    def learn(  # noqa: B027, a drafter need not listen
        self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn
    ) -> None:
        """Hear what a pass over ``context.last`` and the proposal has drawn, and what stays of the proposal."""

    def begin(self, tokens: Sequence[int]) -> int:
        """Begin a text, anew if one has begun; returns of how many of its first tokens no hidden states are needed."""
        return len(tokens)

    def follow(self, tokens: Sequence[int]) -> None:  # noqa: B027, most have no use for a prompt before they propose
        """Hear the first tokens of a text, its prompt or a part of it, while the prompt passes the model: for those who
        have it pass another one, too.
        """

    def read(  # noqa: B027, one without taps hears nothing
        self, tokens: Sequence[int], states: NDArray[np.float32], start: int, level: Level
    ) -> None:
        """Hear the hidden states at the taps, side by side, ``[tokens, width]``, of tokens that stay for now.

        They stand at ``start`` and after it, in place of all that was read of these positions and later ones. What a
        drafter's own passes gave is replaced in the end by what verification gave.
        """

    def close(self) -> None:  # noqa: B027, most keep nothing
        """The text is over."""


class WrappingDrafter(Drafter):
    """A drafter that uses another one, which reads for it."""

    def __init__(self, first: Drafter) -> None:
        self._first = first
        self.taps = first.taps

    def begin(self, tokens: Sequence[int]) -> int:
        return self._first.begin(tokens)

    def follow(self, tokens: Sequence[int]) -> None:
        self._first.follow(tokens)

    def read(self, tokens: Sequence[int], states: NDArray[np.float32], start: int, level: Level) -> None:
        self._first.read(tokens, states, start, level)

    def close(self) -> None:
        self._first.close()

    def learn(self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn) -> None:
        self._first.learn(context, proposal, checked, drawn)

    def _learn_and_tell(
        self, context: Context, whole: Proposal, proposal: Proposal, checked: Verification, drawn: Drawn
    ) -> None:
        """Let the other drafter, and whoever gives advice on it, hear how so much of its whole proposal fared. Where
        nothing was worth checking, the draws tell how it would have fared: else it could never be believed again.
        """
        self._first.learn(context, proposal, checked, drawn)
        if context.advice:
            context.advice.learn(proposal if proposal.tokens else whole, checked)


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
        while len(proposal.tokens) < context.limit and context.more(proposal.confidences):
            ((token, confidence, _),) = yield Ask([token], "draft", confidences=True)
            proposal.tokens.append(token)
            proposal.confidences.append(confidence)
            if token in context.ends:
                break
        return proposal


class Straight(WrappingDrafter):
    """What a cheap drafter proposes goes to the exact level, as much of it as is worth its rows."""

    def __init__(self, first: Drafter) -> None:
        super().__init__(first)
        self.likely = first.likely
        self._whole = Proposal()

    def propose(self, context: Context) -> Proposing:
        advice = context.advice
        if advice:
            context = replace(context, worth=lambda first: advice.straight(first, or_draft=False) or 0)
        proposal = self._whole = yield from self._first.propose(context)
        if advice:
            proposal = proposal.beginning(advice.straight(proposal, or_draft=False) or 0)
        return proposal

    def learn(self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn) -> None:
        self._learn_and_tell(context, self._whole, proposal, checked, drawn)


class Cascade(WrappingDrafter):
    """A cheap drafter proposes, a level of the model checks several of its tokens at once, and what that level draws
    is the proposal: the same tokens as without the cheap drafter, in fewer passes.

    Args:
        first: the cheap drafter, whose proposals may be trees.
        nodes: tokens it may propose for a pass; ``None`` for as many as are worth their rows.
        level: what checks them.
        may_skip: whether its proposals may go straight to the exact level where that is faster.
    """

    def __init__(
        self, first: Drafter, nodes: int | None = None, level: Level = "draft", *, may_skip: bool = False
    ) -> None:
        super().__init__(first)
        self._nodes, self._level = nodes, level
        self._may_skip, self._skipped, self._was_asked = may_skip, False, False
        self._whole = Proposal()  # of the cheap drafter

    def propose(self, context: Context) -> Proposing:
        proposal, first = Proposal(), None
        self._skipped, self.likely = False, 0
        if self._may_skip and (advice := context.advice):
            first = yield from self._asked(replace(context, worth=self._worth_of_either(advice)))
            if (count := advice.straight(first, or_draft=True)) is not None:
                self._skipped, self.likely = self._was_asked, self._first.likely
                return first.beginning(count)
        while (left := context.limit - len(proposal.tokens)) > 0 and context.more(proposal.confidences):
            # The pass itself draws one token; where that is all there is room for, nothing is left to check.
            room = context.slots - len(proposal.tokens) - 1 if left > 1 else 0
            inner = replace(
                context,
                tentative=[*context.tentative, *proposal.tokens],
                limit=min(room, MOST_CHECKED if self._nodes is None else self._nodes),
                more=lambda _: True,
                slots=context.slots - len(proposal.tokens),
            )
            worth = self._worth_of(inner, list(proposal.confidences))
            if first is None:
                first = yield from self._asked(replace(inner, worth=worth))
            first = first.beginning(worth(first))
            fed = [inner.last, *first.tokens]
            drawn = yield Ask(
                fed, self._level, first.rows(), range(len(fed)), confidences=True, likely=self._first.likely
            )
            checked = verify([choice.token for choice in drawn], first)
            if self._was_asked:
                self._learn_and_tell(inner, self._whole, first, checked, drawn)
            context.keep(checked.path)
            if len(checked.path) > left:
                context.cut(inner.position - 1 + left)
            for row, token in zip(checked.path[:left], checked.tokens[:left], strict=True):
                proposal.tokens.append(token)
                proposal.confidences.append(drawn[row].confidence)
                if token in context.ends:
                    return proposal
            first = None
        return proposal

    def learn(self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn) -> None:
        if self._skipped:
            self._learn_and_tell(context, self._whole, proposal, checked, drawn)

    def _asked(self, context: Context) -> Proposing:
        """What the cheap drafter proposes, unless it is not worth asking; what it leaves in the cache is cut away."""
        self._was_asked = context.advice is None or context.advice.asks()
        if not self._was_asked:
            return Proposal()
        self._whole = yield from self._first.propose(context)
        context.cut(context.position - 1)
        return self._whole

    def _worth_of(self, inner: Context, confidences: Sequence[float]) -> Callable[[Proposal], int]:
        """How many tokens of a proposal are fed after drafted ones with ``confidences``."""
        advice = inner.advice
        if self._nodes is None and advice:
            return lambda first: min(inner.limit, advice.worth(first, confidences))
        return lambda first: inner.limit

    def _worth_of_either(self, advice: Advice) -> Callable[[Proposal], int]:
        """How many tokens of a proposal are fed first, at whichever level that is."""

        def worth(first: Proposal) -> int:
            straight = advice.straight(first, or_draft=True)
            if straight is not None:
                return straight
            return advice.worth(first, ()) if self._nodes is None else self._nodes

        return worth
