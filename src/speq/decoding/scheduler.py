"""The scheduler: it runs one pass for what all sequences ask for at one level. One sequence is the trivial case.

Drafts go first: a sequence that has proposed waits until the others have, so that all proposals are verified in one
exact pass. That wait is short, as drafts are. Before them goes what drafters want computed beside the model, by a head
or by another model, in one pass of it for all who ask. Prompts are fed in pieces beside the others' verification.
Nothing of this changes a token: a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from speq.decoding.costs import PassCosts
from speq.decoding.drafters import Aside, Ask
from speq.decoding.sequence import PREFILL_CHUNK, Pass, Request, Sequence
from speq.errors import SpeqError
from speq.runtime.batch import Batch, Engine, Level, Output, Span

SHARED_CHUNK = 64
"""Tokens of a prompt that are fed at a time while other sequences wait for their next token."""


@dataclass(frozen=True)
class Chunk:
    """What a step gave one sequence: new tokens, or the error that ended it."""

    sequence: Sequence
    tokens: list[int]
    error: SpeqError | None = None


class Scheduler:
    """Runs requests on an engine.

    Args:
        engine: what computes.
        clock: seconds.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._clock = engine, clock
        self._waiting: deque[Sequence] = deque()  # those there was no room for yet
        self._running: deque[Sequence] = deque()  # who has waited longest for a pass stands first
        self._in_step = False  # also after one that an exception has ended
        self._costs = PassCosts()

    @property
    def running(self) -> int:
        """Sequences that have not ended."""
        return len(self._running) + len(self._waiting)

    def prepare(self, request: Request) -> Sequence:
        """A request in the form in which it can be added.

        Raises:
            SpeqError: the prompt is empty, does not fit the context, or holds an id outside the vocabulary.
        """
        request.check(self._engine.vocab_size, self._engine.limits.context)
        return Sequence(request, self._engine.kv, self._engine.limits.context, self._costs, self._clock)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence on. It begins when fewer sequences run than there is room for in the cache; one that was
        removed before stays where it is.
        """
        if not sequence.ended:
            self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is, and give its pages back; once more does no harm."""
        sequence.close()
        for line in (self._waiting, self._running):
            if sequence in line:
                line.remove(sequence)

    def step(self) -> list[Chunk]:
        """Run one pass; returns what it gave the sequences that got tokens or ended with an error.

        An exception in the middle of it, Ctrl-C among them, loses no token: the next step begins with what all
        sequences have by then.
        """
        if self._in_step:
            self._recover()
        self._in_step = True
        chunks = self._step()
        self._in_step = False
        return chunks

    def _recover(self) -> None:
        self._engine.kv.settle()
        for sequence in list(self._running):
            sequence.recover()
            if sequence.ask is None:
                self.remove(sequence)

    def _step(self) -> list[Chunk]:
        while self._waiting and len(self._running) < self._engine.limits.sequences:
            self._running.append(self._waiting.popleft())
            self._running[-1].chunk = self._prefill_chunk()
            self._running[-1].begin()
        if not self._running:
            return []
        if any(isinstance(sequence.ask, Aside) for sequence in self._running):
            return self._step_aside()
        started = self._clock()
        level, chosen = self._choose()
        load = sum(not sequence.in_prefill for sequence in self._running) or 1
        taps = tuple(sorted({tap for sequence in chosen for tap in sequence.taps}))
        output = self._engine.run(Batch([self._span(sequence) for sequence in chosen], level, taps))
        seconds = self._clock() - started
        rows = [len(sequence.ask.tokens) for sequence in chosen if isinstance(sequence.ask, Ask)]
        of_prompts = any(sequence.in_prefill for sequence in chosen)
        self._costs.observe(level, sum(rows), seconds, of_prompts=of_prompts)
        chunks = []
        for index, (sequence, share) in enumerate(zip(chosen, self._shares(level, rows), strict=True)):
            sequence.situation.load = load
            if level == "draft":
                sequence.situation.drafting = len(chosen)
            sequence.chunk = self._prefill_chunk()
            cost = share * self._costs.took(level, sum(rows), seconds)
            passed = Pass(level, rows[index], sequence.kv.length - rows[index], share * seconds, cost=cost)
            chunks.append(self._advance(sequence, output, index, passed))
        elapsed = self._clock() - started
        for sequence in {*self._running, *chosen}:
            self._count(sequence, level, elapsed, seconds if sequence in chosen else 0.0)
        return [chunk for chunk in chunks if chunk.tokens or chunk.error]

    def _step_aside(self) -> list[Chunk]:
        """Compute beside the model what sequences ask for at one place."""
        started = self._clock()
        waiting = [(sequence, sequence.ask) for sequence in self._running if isinstance(sequence.ask, Aside)]
        first = waiting[0][1]
        chosen: list[tuple[Sequence, Aside[Any, Any]]] = []
        rows = 0
        for sequence, ask in waiting:
            if ask is first or (ask.place is first.place and rows + ask.rows <= first.most_rows):
                chosen.append((sequence, ask))
                rows += ask.rows
        answers = first.run([ask.work for _, ask in chosen])
        for (_, ask), answer in zip(chosen, answers, strict=True):
            ask.answer = answer
        seconds = self._clock() - started
        chunks = [self._advance_aside(sequence, seconds * ask.rows / rows) for sequence, ask in chosen]
        elapsed = self._clock() - started
        for sequence in {*self._running, *(sequence for sequence, _ in chosen)}:
            self._count(sequence, "draft", elapsed, 0.0)
        return [chunk for chunk in chunks if chunk.tokens or chunk.error]

    def _prefill_chunk(self) -> int:
        return PREFILL_CHUNK if len(self._running) == 1 else SHARED_CHUNK

    def _choose(self) -> tuple[Level, list[Sequence]]:
        """The level of the next pass and who takes part: whoever has waited longest, then texts, then prompts."""
        asks = [(sequence, sequence.ask) for sequence in self._running if isinstance(sequence.ask, Ask)]
        level: Level = next(
            (each for each in self._engine.levels if any(ask.level == each for _, ask in asks)), "exact"
        )
        waiting = [(sequence, ask) for sequence, ask in asks if ask.level == level]
        waiting[1:] = sorted(waiting[1:], key=lambda pair: pair[0].in_prefill)
        chosen: list[Sequence] = []
        rows = 0
        for sequence, ask in waiting:
            if rows + len(ask.tokens) <= self._engine.limits.rows:
                chosen.append(sequence)
                rows += len(ask.tokens)
        for sequence in chosen:
            self._running.remove(sequence)
            self._running.append(sequence)
        return level, chosen

    def _span(self, sequence: Sequence) -> Span:
        ask = sequence.ask
        assert isinstance(ask, Ask)
        return Span(
            sequence.kv,
            ask.tokens,
            ask.parents,
            ask.wanted,
            sequence.request.sampling,
            confidences=ask.confidences,
            likely=ask.likely,
        )

    def _shares(self, level: Level, rows: list[int]) -> list[float]:
        """Each sequence's part of a pass: what any pass costs in equal parts, the rest by rows."""
        fixed = self._costs.fixed_part(level, sum(rows))
        return [fixed / len(rows) + (1 - fixed) * own / sum(rows) for own in rows]

    def _advance(self, sequence: Sequence, output: Output, index: int, passed: Pass) -> Chunk:
        try:
            # The rows are copied: what a tap keeps is overwritten by the next pass.
            states = np.concatenate([output.tap(index, tap) for tap in sequence.taps], 1) if sequence.taps else None
            return self._after(sequence, sequence.advance(output.drawn(index), passed, states))
        except SpeqError as error:
            return self._failed(sequence, error)

    def _advance_aside(self, sequence: Sequence, seconds: float) -> Chunk:
        try:
            return self._after(sequence, sequence.advance_aside(seconds))
        except SpeqError as error:
            return self._failed(sequence, error)

    def _after(self, sequence: Sequence, tokens: list[int]) -> Chunk:
        if sequence.ask is None:
            self.remove(sequence)
        return Chunk(sequence, tokens)

    def _failed(self, sequence: Sequence, error: SpeqError) -> Chunk:
        sequence.error = error
        self.remove(sequence)
        return Chunk(sequence, [], error)

    @staticmethod
    def _count(sequence: Sequence, level: Level, elapsed: float, own: float) -> None:
        """Count the seconds of a step for a sequence, which took part or waited."""
        stats = sequence.request.stats
        if not sequence.decoding:
            stats.prefill_seconds += elapsed
            sequence.decoding = not sequence.in_prefill
            return
        stats.decode_seconds += elapsed
        if level == "exact":
            stats.verify_seconds += own
        else:
            stats.draft_seconds += own
