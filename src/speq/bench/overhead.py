"""What a pass costs beyond its matrix products: the whole pass less a pass that has the products and nothing else.

Norms, the quantisation of inputs and the wait at the end of each product happen inside of the products and count with
them. The rest is the embedding row, attention, and the call itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from speq.backends.cpu import NativeStep
from speq.bench import programs
from speq.bench.timing import seconds_of, take_turns
from speq.graph.ops import Operator
from speq.graph.step import Weights, chain
from speq.models.config import ModelConfig
from speq.models.decoder import build_program

_ROUNDS, _LIMIT = 100, 20.0


@dataclass(frozen=True)
class OverheadRow:
    """A plain or a draft pass of one token with an empty cache.

    Attributes:
        kind: ``plain`` or ``draft``.
        seconds: of the whole pass, median.
        products: seconds of all matrix products without the rest, median, less the call with an embedding row alone.
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
        """Which part of the pass is not matrix products."""
        return self.overhead / self.seconds


def measure_overhead(
    config: ModelConfig, weights: Weights, *, threads: int | None = None, rounds: int = _ROUNDS
) -> list[OverheadRow]:
    """Time whole passes, their products and an empty pass in turns."""
    cache = programs.small_cache(config, 1)
    token = programs.token_ids(config.vocab_size, 1)
    ops = build_program(config).ops

    def bound(chosen: tuple[Operator, ...]) -> NativeStep:
        return programs.bind(config, weights, chosen, cache, 1, threads)

    steps = {
        "whole": bound(ops),
        "products": bound(tuple(op for op in ops if op.products)),
        "empty": bound(()),
    }

    def seconds(step: NativeStep, draft: bool) -> float:
        def run() -> None:
            step.run(chain(token, draft=draft, logits="last"))

        run()  # the threads of the step before, which wait for more, have gone to sleep after this
        return seconds_of(run)

    variants = {
        f"{kind} {name}": partial(seconds, step, kind == "draft")
        for kind in ("plain", "draft")
        for name, step in steps.items()
    }
    taken = take_turns(variants, rounds, _LIMIT)
    middle = {name: float(np.median(values)) for name, values in taken.items()}
    return [
        OverheadRow(kind, middle[f"{kind} whole"], middle[f"{kind} products"] - middle[f"{kind} empty"])
        for kind in ("plain", "draft")
    ]
