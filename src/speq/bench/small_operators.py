"""What reads next to nothing: the embedding row with the call itself, and attention of all layers without a context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from speq.backends.cpu import NativeStep
from speq.bench import programs
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.graph.step import Weights, chain
from speq.models.config import ModelConfig

_ROUNDS = 50


@dataclass(frozen=True)
class OperatorRow:
    """One kind of operator for one token: median seconds with quartiles."""

    operator: str
    seconds: float
    low: float
    high: float


def measure_small_operators(
    config: ModelConfig, weights: Weights, *, threads: int | None = None, rounds: int = _ROUNDS
) -> list[OperatorRow]:
    """Time a pass that only looks up an embedding row, and what attention to the token itself adds to it."""
    cache = programs.small_cache(config, 1)
    token = programs.token_ids(config.vocab_size, 1)
    attention = next(group for group in programs.groups(config) if group.name == "attention")
    call = programs.bind(config, weights, (), cache, 1, threads)
    attended = programs.bind(config, weights, attention.ops, cache, 1, threads)

    def seconds(step: NativeStep) -> float:
        return seconds_of(lambda: step.run(chain(token)))

    variants: dict[str, Callable[[], float]] = {
        "call, embedding row": partial(seconds, call),
        "attention, no context": lambda: seconds(attended) - seconds(call),
    }
    taken = take_turns(variants, rounds)
    timings = {name: Timing.of(values) for name, values in taken.items()}
    return [OperatorRow(name, timing.median, timing.low, timing.high) for name, timing in timings.items()]
