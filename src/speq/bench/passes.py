"""Whole passes through the engine: plain, draft, and verify by the number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speq.bench.programs import token_ids
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.runtime.single import SingleSequence

TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
CONTEXT = 256
_ROUNDS, _LIMIT = 25, 60.0


@dataclass(frozen=True)
class PassRow:
    """One kind of pass.

    Attributes:
        kind: ``draft``, ``plain`` (one token) or ``verify``.
        tokens: in the pass; logits are computed for all of them.
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
    engine: SingleSequence, *, tokens: Sequence[int] = TOKENS, context: int = CONTEXT, rounds: int = _ROUNDS
) -> list[PassRow]:
    """Time passes that follow ``context`` tokens in the cache (fewer, if the model has no room); empties the cache.

    Args:
        engine: the model.
        tokens: sizes of the exact passes; the plain pass is always among them.
        context: tokens in the cache before each pass.
        rounds: most rounds; each runs every kind of pass once.
    """
    counts = sorted({1, *tokens})
    context = max(min(context, engine.context_length - counts[-1]), 0)
    ids = token_ids(engine.vocab_size, context + counts[-1]).tolist()
    engine.truncate(0)
    if context:
        engine.forward(ids[:context], logits="none")

    def pass_of(count: int, draft: bool) -> Callable[[], float]:
        def run() -> float:
            seconds = seconds_of(lambda: engine.forward(ids[context : context + count], draft=draft, logits="all"))
            engine.truncate(context)
            return seconds

        return run

    variants = {"draft 1": pass_of(1, True)} | {f"exact {n}": pass_of(n, False) for n in counts}
    taken = take_turns(variants, rounds, _LIMIT)
    engine.truncate(0)
    plain = np.array(taken["exact 1"])
    rows = []
    for name, seconds in taken.items():
        precision, n = name.split()
        kind = "draft" if precision == "draft" else "plain" if n == "1" else "verify"
        timing = Timing.of(seconds)
        ratio = float(np.median(np.array(seconds) / plain))
        rows.append(PassRow(kind, int(n), timing.median, timing.low, timing.high, ratio))
    return rows
