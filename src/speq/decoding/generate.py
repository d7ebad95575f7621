"""One request alone, run to its end: what decoding is when nothing else is going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from speq.decoding.scheduler import Scheduler
from speq.decoding.sequence import Request
from speq.runtime.batch import Engine


def generate_tokens(
    engine: Engine, request: Request, *, clock: Callable[[], float] = time.perf_counter
) -> Iterator[list[int]]:
    """Yield the new tokens of each pass: one from the prefill, then ``accepted + 1`` from every round.

    Raises:
        SpeqError: the prompt is empty or does not fit the context, or logits are not finite.
    """
    scheduler = Scheduler(engine, clock)
    sequence = scheduler.prepare(request)
    scheduler.add(sequence)
    try:
        while scheduler.running:
            for chunk in scheduler.step():
                if chunk.error:
                    raise chunk.error
                yield chunk.tokens
    finally:
        scheduler.remove(sequence)
