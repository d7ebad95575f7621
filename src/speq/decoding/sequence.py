"""A sequence on its way from prompt to text: a coroutine that asks for passes and notes what they gave.

The last token is never in the cache: it goes into the next pass together with the proposed ones. Token ids do not
depend on the drafter, the policy or other sequences; only the number of passes does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from speq.decoding.costs import PassCosts
from speq.decoding.drafters import Ask, Asked, Context, Drafter, Drawn, Proposing
from speq.decoding.policy import Policy, Situation
from speq.decoding.stats import Statistics
from speq.decoding.verify import Proposal, verify
from speq.errors import SpeqError
from speq.limits import BATCH_ROWS
from speq.runtime.kv import KVHandle, KVPool
from speq.runtime.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFILL_CHUNK = BATCH_ROWS
"""Tokens of a prompt that are fed at a time while nobody else waits."""

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pass:
    """One pass of a sequence.

    Attributes:
        level, rows: of its own rows.
        context: slots that were filled before.
        seconds: its share of what the pass took; ``cost`` is the same in plain passes (:class:`PassCosts`).
        tested, accepted: of a pass that checks proposed tokens, how many on the right path it came to look at, and how
            many of these were right: all of them, or all but the last.
    """

    level: str
    rows: int
    context: int
    seconds: float
    tested: int = 0
    accepted: int = 0
    cost: float = 0.0

    def checked(self, path: Tokens[int], parents: Tokens[int] | None) -> Pass:
        """The same pass when it is known which of its rows, a chain or a tree by ``parents``, stay."""
        if not path:
            return self
        goes_on = path[-1] + 1 < self.rows if parents is None else path[-1] in parents
        return replace(self, tested=len(path) - 1 + goes_on, accepted=len(path) - 1)


@dataclass(frozen=True)
class Round:
    """What one round did: the passes of its drafter, then one exact pass over the proposal.

    Attributes:
        context: tokens in the cache before it.
        passes: of the drafter; empty for a plain step.
        verify: the exact pass.
        proposed, accepted: tokens proposed, and how many of them were right.
        own_seconds: that the drafter took beside its passes: look-ups, tables, decisions.
    """

    context: int
    passes: tuple[Pass, ...]
    verify: Pass
    proposed: int
    accepted: int
    own_seconds: float = 0.0


@dataclass
class Request:
    """What is asked for.

    Attributes:
        prompt: token ids, at least one and fewer than the context length.
        sampling: with a seed, unless greedy.
        drafter, policy: what proposes, and how much.
        max_new_tokens: ``None`` goes on to the end of the context.
        ends: token ids that end the text; the one that does belongs to it.
        stats: filled in on the way, so that it is right at any time.
        progress: called with ("prefill", tokens done, tokens in all) during a long prefill.
        on_prefill, on_round: called with each pass of the prefill and each round.
    """

    prompt: Tokens[int]
    sampling: Sampling
    drafter: Drafter
    policy: Policy
    max_new_tokens: int | None = None
    ends: frozenset[int] = frozenset()
    stats: Statistics = field(default_factory=Statistics)
    progress: Progress | None = None
    on_prefill: Callable[[Pass], None] | None = None
    on_round: Callable[[Round], None] | None = None

    def check(self, vocab_size: int, context: int) -> None:
        """Whether a model can take the prompt.

        Raises:
            SpeqError: it is empty, does not fit the context, or holds an id outside the vocabulary.
        """
        if not self.prompt:
            raise SpeqError("the prompt is empty: give at least one token")
        for token in self.prompt:
            if not 0 <= token < vocab_size:
                raise SpeqError(
                    f"token id {token} is outside the model's vocabulary: use ids from 0 to {vocab_size - 1}"
                )
        if len(self.prompt) >= context:
            raise SpeqError(
                f"the prompt has {len(self.prompt)} tokens and the model's context {context}: shorten the prompt"
            )


class Sequence:
    """A request in the hands of a scheduler.

    Attributes:
        kv: its part of the cache, once it has begun.
        tokens: prompt and text so far.
        ask: the pass it waits for, or what is to be computed beside the model; ``None`` before it has begun and when it
            has ended.
        error: what ended it before its time.
        chunk: tokens of the prompt to feed at a time.
        situation: what its policy has to know of others.
        ended: whether it is closed.
        in_prefill: whether its prompt is not yet through; ``decoding``, whether that was so before the last step.
    """

    def __init__(
        self,
        request: Request,
        pool: KVPool,
        context: int,
        costs: PassCosts,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.chunk = PREFILL_CHUNK
        self.situation = Situation(costs)
        self.in_prefill = True
        self.decoding = False
        self._pool, self._context, self._clock = pool, context, clock
        self._kv: KVHandle | None = None
        self._given = len(self.tokens)  # tokens that advance() has told of
        self._safe = 0  # slots of the cache that no exception can have left half-written
        self._passes: list[Pass] = []
        self._states: NDArray[np.float32] | None = None  # at the drafter's taps, of the last pass
        self._own_seconds = 0.0  # of the drafter in this round
        self._coroutine = self._live()
        self.ask: Asked | None = None
        self.error: SpeqError | None = None
        self.ended = False

    @property
    def kv(self) -> KVHandle:
        """Its part of the cache, once it has begun."""
        assert self._kv is not None
        return self._kv

    def begin(self) -> None:
        """Take what the cache has of the prompt, and ask for the first pass."""
        self._kv = self._pool.open(self.tokens)
        self._begin_drafter()
        self._safe = self.kv.length
        self.ask = next(self._coroutine)

    def _begin_drafter(self) -> None:
        """Forget so much of the cache as passes have to compute again for the drafter."""
        known = self.request.drafter.begin(self.tokens)
        if self.taps:
            self._pool.truncate(self.kv, min(self.kv.length, known))

    def recover(self) -> None:
        """Go on from the tokens so far after an exception in the middle of a step: they are right at any time."""
        if self.ended:
            return
        self._passes.clear()
        if self._kv is None:
            self._kv = self._pool.open(self.tokens)
        else:
            self._pool.truncate(self._kv, min(self._safe, self._kv.length, len(self.tokens) - 1))
        self._begin_drafter()
        self._safe = self._kv.length
        self._coroutine = self._live()
        self.ask = next(self._coroutine, None)

    @property
    def taps(self) -> tuple[str, ...]:
        """What the passes that it asks for are to keep."""
        return self.request.drafter.taps

    def advance(self, drawn: Drawn, passed: Pass, states: NDArray[np.float32] | None = None) -> list[int]:
        """Go on with what the pass it waited for has drawn; returns the tokens that became certain, often none.

        Args:
            states: of its rows at its taps, side by side; ``None`` without any.
        """
        self._passes.append(passed)
        self._states = states
        return self._go_on(drawn)

    def advance_aside(self, seconds: float) -> list[int]:
        """Go on when what it waited for beside the model is computed, which took it so many seconds."""
        self._own_seconds += seconds
        return self._go_on(())

    def _go_on(self, drawn: Drawn) -> list[int]:
        try:
            self.ask = self._coroutine.send(drawn)
        except StopIteration:
            self.ask = None
        given, self._given = self._given, len(self.tokens)
        return self.tokens[given:]

    def close(self) -> None:
        """Give the cache back; what was computed exactly is left there for a text that begins alike."""
        self.ask, self.ended = None, True
        self._coroutine.close()
        self.request.drafter.close()
        if self._kv is not None:
            self._pool.close(self._kv)

    def _live(self) -> Generator[Asked, Drawn, None]:
        request, stats = self.request, self.request.stats
        prompt = len(request.prompt)
        wanted = self._context - prompt
        if request.max_new_tokens is not None:
            wanted = min(wanted, request.max_new_tokens)
        stats.prompt_tokens, stats.seed = prompt, request.sampling.seed
        if self._has_ended(wanted):
            return
        new = yield from self._prefill()
        self.in_prefill = False
        while not self._emit(new, wanted):
            new = yield from self._round(wanted)

    def _emit(self, new: list[int], wanted: int) -> bool:
        """Add tokens up to the first that ends the text; whether the text has ended."""
        ends = self.request.ends
        end = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
        self.tokens += new[:end]
        return self._has_ended(wanted)

    def _has_ended(self, wanted: int) -> bool:
        """Whether the tokens so far are the whole text; counts them."""
        stats = self.request.stats
        stats.new_tokens = len(self.tokens) - len(self.request.prompt)
        if stats.new_tokens and self.tokens[-1] in self.request.ends:
            stats.finish_reason = "stop"
        elif stats.new_tokens >= wanted:
            stats.finish_reason = "length"
        return stats.finished

    def _prefill(self) -> Generator[Asked, Drawn, list[int]]:
        total, progress = len(self.tokens), self.request.progress
        is_long = total - self.kv.length > PREFILL_CHUNK
        while True:
            left = total - self.kv.length
            part = self.tokens[self.kv.length : self.kv.length + min(left, self.chunk)]
            last = len(part) == left
            ask = Ask(part, "exact", wanted=(left - 1,) if last else ())
            drawn = yield ask
            self._read(ask, range(len(part)))
            self.request.drafter.follow(self.tokens[: self.kv.length])
            if self.request.on_prefill:
                self.request.on_prefill(self._passes[-1])
            self._passes.clear()
            if progress and is_long:
                progress("prefill", total - left + len(part), total)
            self._safe = self.kv.length
            if last:
                return [drawn[0].token]

    def _round(self, wanted: int) -> Generator[Asked, Drawn, list[int]]:
        request, start = self.request, self.kv.length
        policy = request.policy
        self._safe = start
        limit = policy.plan(wanted - request.stats.new_tokens - 1, self.situation)
        context = Context(
            self.tokens,
            limit,
            self._context - start,
            policy.more,
            self._keep,
            self._cut,
            request.ends,
            request.sampling,
            advice=policy,
        )
        self._own_seconds = 0.0
        proposal = yield from self._timed(request.drafter.propose(context))
        self._pool.truncate(self.kv, start)
        passes = tuple(self._passes)
        self._passes.clear()
        rows = [self.tokens[-1], *proposal.tokens]
        ask = Ask(rows, "exact", proposal.rows(), range(len(rows)), likely=request.drafter.likely)
        drawn = yield ask
        done = verify([choice.token for choice in drawn], proposal)
        before = self._clock()
        self._read(ask, done.path)
        request.drafter.learn(context, proposal, done, drawn)
        self._own_seconds += self._clock() - before
        self._pool.keep(self.kv, start, done.path)
        self._safe = self.kv.length
        (verified,) = self._passes
        verified = verified.checked(done.path, proposal.rows())
        self._passes.clear()
        happened = Round(start, passes, verified, len(proposal.tokens), done.accepted, self._own_seconds)
        line, own = proposal.main_line(), self.situation.costs.of_seconds(self._own_seconds)
        policy.observe(
            [proposal.confidences[index] for index in line],
            sum(index + 1 in done.path for index in line),
            passes=len(passes),
            rows=sum(each.rows for each in passes),
            cost=sum(each.cost for each in (*passes, verified)) + own,
            own=own,
        )
        request.stats.add_round(happened.proposed, happened.accepted, len(line))
        if request.on_round:
            request.on_round(happened)
        return done.tokens

    def _timed(self, proposing: Proposing) -> Generator[Asked, Drawn, Proposal]:
        """What a drafter asks for and proposes, while the seconds that it takes itself are counted."""
        try:
            before = self._clock()
            ask = next(proposing)
            while True:
                self._own_seconds += self._clock() - before
                drawn = yield ask
                before = self._clock()
                if isinstance(ask, Ask) and ask.parents is None:
                    self._read(ask, range(len(ask.tokens)))
                ask = proposing.send(drawn)
        except StopIteration as stop:
            self._own_seconds += self._clock() - before
            proposal: Proposal = stop.value
            return proposal
        finally:
            proposing.close()

    def _cut(self, length: int) -> None:
        self._pool.truncate(self.kv, length)

    def _keep(self, path: Tokens[int]) -> None:
        passed = self._passes[-1]
        self._pool.keep(self.kv, passed.context, path)
        assert isinstance(self.ask, Ask)
        self._passes[-1] = passed.checked(path, self.ask.parents)
        self._read(self.ask, path)

    def _read(self, ask: Ask, path: Tokens[int]) -> None:
        """Let the drafter read what passed its taps for those rows of the last pass that stay."""
        if self._states is not None:
            tokens, rows = [ask.tokens[row] for row in path], self._states[list(path)]
            self.request.drafter.read(tokens, rows, self._passes[-1].context, ask.level)
