"""What attention over a long context costs each token, over all layers, beside a plain pass without any context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speq.bench import programs
from speq.bench.machine import read_bandwidth
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.graph.step import Weights, chain
from speq.models.config import ModelConfig

CONTEXTS = (512, 2048, 8192)
_ROUNDS, _LIMIT = 15, 20.0


@dataclass(frozen=True)
class AttentionRow:
    """Attention of one new token.

    Attributes:
        context: positions it sees.
        seconds: median over all layers, with ``low`` and ``high`` quartiles.
        bytes: of keys and values that are read.
        bandwidth: bytes per second that reading alone reached in the same rounds.
    """

    context: int
    seconds: float
    low: float
    high: float
    bytes: int
    bandwidth: float

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds

    @property
    def bandwidth_share(self) -> float:
        return self.rate / self.bandwidth


def measure_attention(
    config: ModelConfig,
    weights: Weights,
    *,
    threads: int | None = None,
    contexts: Sequence[int] = CONTEXTS,
    rounds: int = _ROUNDS,
) -> list[AttentionRow]:
    """Time the attention operators of all layers for one token at the end of each context.

    Contexts longer than what the model is made for are cut to that. The cache holds random keys and values.
    """
    lengths = sorted({min(context, config.context_length) for context in contexts})
    cache = programs.small_cache(config, lengths[-1])
    attention = next(group for group in programs.groups(config) if group.name == "attention")
    step = programs.bind(config, weights, attention.ops, cache, 1, threads)
    token = programs.token_ids(config.vocab_size, 1)

    def at(position: int) -> Callable[[], float]:
        def run() -> float:
            programs.evict()  # the keys and values of other layers, or weights, would have pushed these out
            return seconds_of(lambda: step.run(chain(token, position)))

        return run

    variants = {str(length): at(length - 1) for length in lengths}
    variants["bandwidth"] = lambda: read_bandwidth(threads, gigabytes=0.25, repeats=2)
    taken = take_turns(variants, rounds, _LIMIT)
    bandwidth = float(np.median(taken["bandwidth"]))
    rows = []
    for length in lengths:
        timing = Timing.of(taken[str(length)])
        read = 4 * config.kv_heads * config.head_dim * sum(min(length, window or length) for window in config.windows)
        rows.append(AttentionRow(length, timing.median, timing.low, timing.high, read, bandwidth))
    return rows
