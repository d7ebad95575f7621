"""Whole passes through the engine: plain, draft, and verify by the number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speq.bench.programs import token_ids
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.runtime.batch import Batch, Engine, Level, Span
from speq.runtime.sampling import GREEDY

TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
DRAFTED = (1, 2, 3, 4, 6, 8, 16)
CONTEXT = 256
_ROUNDS, _LIMIT = 25, 120.0


@dataclass(frozen=True)
class PassRow:
    """One kind of pass.

    Attributes:
        kind: ``draft``, ``plain`` (one token) or ``verify``.
        tokens: in the pass, of one sequence; one is drawn after each of them.
        seconds: median, with ``low`` and ``high`` quartiles.
        plain_ratio: median over the rounds of the time over the plain pass of the same round.
    """

    kind: str
    tokens: int
    seconds: float
    low: float
    high: float
    plain_ratio: float


def measure_passes(
    engine: Engine,
    *,
    tokens: Sequence[int] = TOKENS,
    drafted: Sequence[int] = DRAFTED,
    context: int = CONTEXT,
    rounds: int = _ROUNDS,
) -> list[PassRow]:
    """Time passes as decoding runs them, after ``context`` tokens in the cache (fewer, if the model has no room).

    Args:
        engine: the model.
        tokens: sizes of the exact passes; the plain pass is always among them.
        drafted: sizes of the draft passes.
        context: tokens in the cache before each pass.
        rounds: most rounds; each runs every kind of pass once.
    """
    counts = sorted({1, *tokens})
    most = max(*counts, *drafted)
    context = max(min(context, engine.limits.context - most), 0)
    ids = token_ids(engine.vocab_size, context + most).tolist()
    kv = engine.kv.open()
    for first in range(0, context, engine.limits.rows):
        engine.run(Batch([Span(kv, ids[first : min(first + engine.limits.rows, context)])]))

    def pass_of(count: int, level: Level) -> Callable[[], float]:
        part = ids[context : context + count]
        span = Span(kv, part, wanted=range(count), sampling=GREEDY, confidences=level == "draft")

        def run() -> float:
            seconds = seconds_of(lambda: engine.run(Batch([span], level)))
            engine.kv.truncate(kv, context)
            return seconds

        return run

    variants = {f"draft {n}": pass_of(n, "draft") for n in drafted} | {
        f"exact {n}": pass_of(n, "exact") for n in counts
    }
    taken = take_turns(variants, rounds, _LIMIT)
    engine.kv.close(kv, leave=False)
    plain = np.array(taken["exact 1"])
    rows = []
    for name, seconds in taken.items():
        level, n = name.split()
        kind = "draft" if level == "draft" else "plain" if n == "1" else "verify"
        timing = Timing.of(seconds)
        ratio = float(np.median(np.array(seconds) / plain))
        rows.append(PassRow(kind, int(n), timing.median, timing.low, timing.high, ratio))
    return rows
