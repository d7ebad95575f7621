"""Replays: recorded texts drafted under other settings on a virtual clock, with speq's own drafters and policies.

Nothing of decoding is written a second time: a model runs on an engine that computes nothing, answers every pass from
the recording, and lets the clock go on by what such a pass costs. What a recording does not know are draws after
proposals of a first stage that are on neither the text nor the draft's own course; nothing is accepted after them, and
a table of successors learns nothing from them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from speq.bench.recording import Cost, RecordedText, Recording
from speq.bench.settings import Setting
from speq.decoding.sequence import Round
from speq.errors import SpeqError
from speq.runtime.batch import Batch, Level, Span
from speq.runtime.kv import KVHandle, KVPool
from speq.runtime.sampling import Choice
from speq.serving.api import Model


class Contradiction(SpeqError):
    """A recording that cannot come from one model."""


_UNKNOWN = {"draft": Choice(0, 0.5), "exact": Choice(-1, 0.0)}


class PassCost:
    """Seconds of any pass, from those that were measured: straight lines between them, by rows and by context. More
    rows or a longer context never cost less.

    Args:
        costs: of one level, at the same rows for every context.
    """

    def __init__(self, costs: Iterable[Cost]) -> None:
        by_context: dict[int, dict[int, float]] = {}
        for cost in costs:
            by_context.setdefault(cost.context, {})[cost.rows] = cost.seconds
        self._contexts = sorted(by_context)
        self._lines: list[list[tuple[float, float]]] = []
        for context in self._contexts:
            line: list[tuple[float, float]] = []
            for rows, seconds in sorted(by_context[context].items()):
                before = line[-1][1] if line else 0.0
                below = _at(self._lines[-1], rows) if self._lines else 0.0
                line.append((rows, max(seconds, before, below)))
            self._lines.append(line)

    def __call__(self, rows: int, context: int) -> float:
        """Seconds of a pass over so many rows after so many tokens."""
        whole = [(at, _at(line, rows)) for at, line in zip(self._contexts, self._lines, strict=True)]
        return _at(whole, context)


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """The line through ascending points, at x; beyond the last one it goes on, before the first one it is level."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = min(bisect_left(points, (x,)), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


class Costs:
    """What a recording says a pass costs, with the overhead that comes with it."""

    def __init__(self, recording: Recording) -> None:
        self.overhead = recording.overhead
        by_level = {
            level: PassCost(cost for cost in recording.costs if cost.level == level) for level in ("draft", "exact")
        }
        self.pass_seconds = cache(lambda level, rows, context: by_level[level](rows, context))

    def whole(self, level: str, rows: int, context: int) -> float:
        """Seconds from the beginning of a pass to the next one."""
        return float(self.pass_seconds(level, rows, context)) + self.overhead


class RecordedEngine:
    """An engine that answers from a recording; see :class:`speq.runtime.batch.Engine`.

    Attributes:
        now: the virtual clock, in seconds.
    """

    levels: tuple[Level, ...] = ("draft", "exact")
    taps: tuple[str, ...] = ()

    def __init__(self, recording: Recording) -> None:
        self.vocab_size = recording.vocab_size
        self.limits = recording.limits._replace(sequences=2)
        self.kv = KVPool(1, 1, 1, context=self.limits.context, sequences=2)
        self.costs = Costs(recording)
        self.now = 0.0
        self._text: RecordedText | None = None
        self._tokens: list[int] = []

    def clock(self) -> float:
        return self.now

    def play(self, text: RecordedText) -> None:
        """Answer from this text until the next one."""
        self._text, self._tokens = text, text.tokens

    def check(self, kv: KVHandle, tokens: Sequence[int]) -> None:
        """Whatever was recorded fits."""

    def run(self, batch: Batch) -> RecordedOutput:
        drawn = []
        rows = context = 0
        for span in batch.spans:
            rows, context = rows + len(span.tokens), max(context, span.kv.length)
            self.kv.make_room(span.kv, len(span.tokens))
            drawn.append(self._drawn(span, batch.level))
            self.kv.extend(span.kv, list(span.tokens), exact=batch.level == self.levels[-1])
        if batch.taps:
            raise SpeqError("a recording holds no hidden states, which this draft needs: replay another one")
        self.now += self.costs.pass_seconds(batch.level, rows, context)
        return RecordedOutput(self, drawn)

    def _drawn(self, span: Span, level: Level) -> list[Choice]:
        begin = self._course(span.kv.tokens)
        courses: list[tuple[int, int] | None] = []
        for row, token in enumerate(span.tokens):
            parent = row - 1 if span.parents is None else span.parents[row]
            courses.append(self._after(courses[parent] if parent >= 0 else begin, token))
        found = [self._draw(courses[row], level) for row in span.wanted] if span.sampling else []
        return [Choice(draw.token, draw.confidence, list(draw.likely)[: span.likely]) for draw in found]

    def _course(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Tokens of the text, and of the stray after them, that a history consists of; ``None`` if of others."""
        text = self._tokens
        if len(tokens) <= len(text) and text[: len(tokens)] == tokens:
            return len(tokens), 0
        left = next((at for at, (a, b) in enumerate(zip(tokens, text, strict=False)) if a != b), len(text))
        course: tuple[int, int] | None = (left, 0)
        for token in tokens[left:]:
            course = self._after(course, token)
        return course

    def _after(self, course: tuple[int, int] | None, token: int) -> tuple[int, int] | None:
        if course is None or self._text is None:
            return None
        known, strayed = course
        if not strayed and known < len(self._tokens) and self._tokens[known] == token:
            return known + 1, 0
        stray = self._text.strays.get(known - len(self._text.prompt), ())
        return (known, strayed + 1) if strayed < len(stray) and stray[strayed].token == token else None

    def _draw(self, course: tuple[int, int] | None, level: Level) -> Choice:
        assert self._text is not None
        if course is None:
            return _UNKNOWN[level]
        known, strayed = course
        at = known - len(self._text.prompt)
        if not strayed:
            return self._text.draws[level][at] if at >= 0 else _UNKNOWN[level]
        stray = self._text.strays[at]
        return stray[strayed] if level == "draft" and strayed < len(stray) else _UNKNOWN[level]


class RecordedOutput:
    """What a recording tells of a batch. The overhead passes while draws are looked at: it is no part of the pass."""

    def __init__(self, engine: RecordedEngine, drawn: list[list[Choice]]) -> None:
        self._engine, self._drawn = engine, drawn

    def drawn(self, span: int) -> list[Choice]:
        if span == 0:
            self._engine.now += self._engine.costs.overhead
        return self._drawn[span]

    def logits(self, span: int) -> NoReturn:
        raise SpeqError("a recording holds no logits, which this draft needs: replay another one")

    def tap(self, span: int, name: str) -> NoReturn:
        raise SpeqError("a recording holds no hidden states, which this draft needs: replay another one")


@dataclass(frozen=True)
class Replayed:
    """A text under one setting.

    Attributes:
        tokens, seconds: after the first token.
    """

    text: RecordedText
    tokens: int
    seconds: float
    rounds: Sequence[Round]


def replay(recording: Recording, setting: Setting) -> list[Replayed]:
    """Draft the recorded texts anew, in their order; those that warm up teach the policy and are not given back.

    Raises:
        SpeqError: the draft needs something that is not recorded, or the recording contradicts itself.
    """
    engine = RecordedEngine(recording)
    model = Model(engine, None, ends=recording.ends, clock=engine.clock)
    found = []
    for text in recording.texts:
        rounds: list[Round] = []
        engine.play(text)
        result = model.generate(
            text.prompt,
            # An answer without an end is as long as was asked for, or as there was room.
            max_new_tokens=recording.new_tokens if text.answer[-1] in recording.ends else len(text.answer),
            sampling=recording.sampling,
            draft=setting.draft,
            draft_length=setting.length,
            on_round=rounds.append,
        )
        if result.token_ids != text.answer:
            raise Contradiction(f"the recording of {text.id} contradicts itself: record it again")
        if not text.warms_up:
            found.append(Replayed(text, len(text.answer) - 1, result.stats.decode_seconds, rounds))
    return found
