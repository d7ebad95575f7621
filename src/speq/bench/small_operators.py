"""Operators that read next to nothing: the embedding row with the call itself, and rotary embedding of all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from speq.bench import programs
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.kernels.native import NativeStep
from speq.kernels.step import Weights
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
    """Time a pass that only looks up an embedding row, and what rotary embedding and the cache's writing add to it."""
    cache = programs.small_cache(config, 1)
    token = programs.token_ids(config.vocab_size, 1)
    rotary = next(group for group in programs.groups(config) if group.name == "rotary, cache")
    call = programs.bind(config, weights, (), cache, 1, threads)
    rotated = programs.bind(config, weights, rotary.ops, cache, 1, threads)

    def seconds(step: NativeStep) -> float:
        return seconds_of(lambda: step.run(token, 0, logits="none"))

    variants: dict[str, Callable[[], float]] = {
        "call, embedding row": partial(seconds, call),
        rotary.name: lambda: seconds(rotated) - seconds(call),
    }
    taken = take_turns(variants, rounds)
    timings = {name: Timing.of(values) for name, values in taken.items()}
    return [OperatorRow(name, timing.median, timing.low, timing.high) for name, timing in timings.items()]
