"""Drafters that callers bring along: what they ask for and propose is checked before it can reach others' passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from speq.decoding.drafters import Aside, Ask, Context, Drafter, Proposing, WrappingDrafter
from speq.decoding.verify import Proposal
from speq.errors import SpeqError
from speq.limits import MOST_LIKELY
from speq.runtime.batch import Level, Limits


class CheckedDrafter(WrappingDrafter):
    """A drafter whose mistakes end its own text with a :class:`SpeqError`, and touch nobody else's.

    Args:
        drafter: what drafts.
        name: of the drafter, for messages.
        vocab_size, levels, limits, taps: of the engine.
    """

    def __init__(
        self,
        drafter: Drafter,
        name: str,
        *,
        vocab_size: int,
        levels: Sequence[Level],
        limits: Limits,
        taps: Sequence[str] = (),
    ) -> None:
        super().__init__(drafter)
        self._name = name
        self._vocab_size, self._levels, self._limits = vocab_size, levels, limits
        self.likely = drafter.likely
        self._check_likely(self.likely)
        if unknown := [tap for tap in drafter.taps if tap not in taps]:
            known = f"use some of {taps[0]} to {taps[-1]}" if taps else "this engine has none"
            raise self._error(f"reads the tap {unknown[0]!r}, which the model does not have", known)

    def propose(self, context: Context) -> Proposing:
        fed = before = context.position - 1  # slots of the cache, now and before the last ask

        def keep(path: Sequence[int]) -> None:
            nonlocal fed
            context.keep(path)
            fed = before + len(path)

        def cut(length: int) -> None:
            nonlocal fed, before
            context.cut(length)
            fed = before = min(fed, length)

        inner = self._first.propose(replace(context, keep=keep, cut=cut))
        try:
            ask = next(inner)
            while True:
                if isinstance(ask, Ask):
                    before, fed = fed, fed + len(ask.tokens)
                    self._check_ask(ask, fed)
                elif not isinstance(ask, Aside):
                    raise self._error(f"yielded {type(ask).__name__}", "yield a speq.Ask")
                ask = inner.send((yield ask))
        except StopIteration as stop:
            return self._checked(stop.value, context.limit)
        finally:
            inner.close()

    def _check_ask(self, ask: Ask, fed: int) -> None:
        if ask.level not in self._levels:
            raise self._error(f"asked for the level {ask.level!r}", f"ask for {' or '.join(self._levels)}")
        rows = len(ask.tokens)
        if not 0 < rows <= self._limits.rows:
            raise self._error(f"asked for a pass over {rows} tokens", f"ask for 1 to {self._limits.rows}")
        if fed > self._limits.context:
            raise self._error(f"fed more than the context of {self._limits.context} tokens", "heed context.limit")
        self._check_tokens(ask.tokens)
        self._check_parents(ask.parents, rows)
        wanted = list(ask.wanted)
        if not all(0 <= row < rows for row in wanted) or wanted != sorted(set(wanted)):
            raise self._error(f"wants draws after {wanted}", f"give ascending indices below {rows}")
        self._check_likely(ask.likely)

    def _check_likely(self, likely: int) -> None:
        if not 0 <= likely <= MOST_LIKELY:
            raise self._error(f"wants the {likely} most probable tokens", f"ask for 0 to {MOST_LIKELY}")

    def _checked(self, proposal: Proposal | None, limit: int) -> Proposal:
        if not isinstance(proposal, Proposal):
            raise self._error(f"returned {type(proposal).__name__}", "return a Proposal")
        count = len(proposal.tokens)
        if count > limit:
            raise self._error(f"proposed {count} tokens", f"propose at most context.limit, {limit} here")
        if len(proposal.confidences) != count:
            raise self._error(f"gave {len(proposal.confidences)} confidences for {count} tokens", "give one for each")
        if not all(0 <= confidence <= 1 for confidence in proposal.confidences):
            raise self._error("gave a confidence outside of 0 to 1", "give probabilities")
        self._check_tokens(proposal.tokens)
        self._check_parents(proposal.parents, count)
        return proposal

    def _check_tokens(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise self._error(f"used the token id {token}", f"use ids from 0 to {self._vocab_size - 1}")

    def _check_parents(self, parents: Sequence[int] | None, count: int) -> None:
        if parents is None:
            return
        if len(parents) != count or not all(-1 <= parent < index for index, parent in enumerate(parents)):
            raise self._error(
                f"gave the parents {list(parents)} of {count} tokens", "each comes before its token, or -1"
            )

    def _error(self, what: str, way_out: str) -> SpeqError:
        return SpeqError(f"the drafter {self._name} {what}: {way_out}")
