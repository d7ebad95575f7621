"""What a pass costs beyond its matrix products: the whole pass less the products of all layers, each timed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from speq.bench import programs
from speq.bench.timing import seconds_of, take_turns
from speq.kernels.native import NativeStep
from speq.kernels.ops import Op
from speq.kernels.step import Weights
from speq.models.config import ModelConfig
from speq.models.decoder import build_program

_ROUNDS, _LIMIT = 25, 30.0


@dataclass(frozen=True)
class OverheadRow:
    """A plain or a draft pass of one token with an empty cache.

    Attributes:
        kind: ``plain`` or ``draft``.
        seconds: of the whole pass, median.
        products: seconds of the matrix products alone, each of all layers at once; the median of their sums.
    """

    kind: str
    seconds: float
    products: float

    @property
    def overhead(self) -> float:
        """Seconds outside of the matrix products."""
        return self.seconds - self.products

    @property
    def share(self) -> float:
        """Of the pass that is not matrix products."""
        return self.overhead / self.seconds


def measure_overhead(
    config: ModelConfig, weights: Weights, *, threads: int | None = None, rounds: int = _ROUNDS
) -> list[OverheadRow]:
    """Time whole passes and their products in turns.

    The products run one group after the other, so that each finds the caches as cold as in a whole pass.
    """
    cache = programs.small_cache(config, 1)
    token = programs.token_ids(config.vocab_size, 1)

    def bound(ops: tuple[Op, ...]) -> NativeStep:
        return programs.bind(config, weights, ops, cache, 1, threads)

    whole, empty = bound(build_program(config).ops), bound(())
    alone = [bound(group.ops) for group in programs.products(config)]

    def seconds(step: NativeStep, draft: bool) -> float:
        return seconds_of(lambda: step.run(token, 0, draft=draft, logits="last"))

    def products_of(draft: bool) -> float:
        return sum(seconds(step, draft) for step in alone) - len(alone) * seconds(empty, draft)

    variants: dict[str, Callable[[], float]] = {}
    for kind in ("plain", "draft"):
        variants[kind] = partial(seconds, whole, kind == "draft")
        variants[f"{kind} products"] = partial(products_of, kind == "draft")
    taken = take_turns(variants, rounds, _LIMIT)
    middle = {name: float(np.median(values)) for name, values in taken.items()}
    return [OverheadRow(kind, middle[kind], middle[f"{kind} products"]) for kind in ("plain", "draft")]
