"""Prefill: tokens per second over blocks of a prompt, and the share of what a float32 matrix product reaches here.

The yardstick is a large square product by the BLAS library of NumPy, and by torch's where it is installed: operations
per second of plain arithmetic, with nothing to decode and no attention. The operations of a prefill are two for each
weight and token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from speq.bench import programs
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.graph.step import Weights
from speq.models.config import ModelConfig
from speq.processors import default_threads
from speq.runtime.single import SingleSequence

BLOCKS = (256, 512)
_SIDE = 1536  # of the square product
SQUARE_OPERATIONS = 2 * _SIDE**3
_ROUNDS, _LIMIT = 5, 60.0


@dataclass(frozen=True)
class PrefillRow:
    """A prompt of ``tokens`` tokens, of which the last gets logits.

    Attributes:
        seconds: median, with ``low`` and ``high`` quartiles.
        operations: multiplications and additions of its matrix products.
        numpy_gflops, torch_gflops: of the yardsticks, in the same rounds; None where torch is not installed.
    """

    tokens: int
    seconds: float
    low: float
    high: float
    operations: int
    numpy_gflops: float
    torch_gflops: float | None

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def gflops(self) -> float:
        return self.operations / self.seconds / 1e9

    @property
    def numpy_share(self) -> float:
        return self.gflops / self.numpy_gflops

    @property
    def torch_share(self) -> float | None:
        return self.gflops / self.torch_gflops if self.torch_gflops else None


def measure_prefill(
    engine: SingleSequence,
    config: ModelConfig,
    weights: Weights,
    *,
    threads: int | None = None,
    blocks: Sequence[int] = BLOCKS,
    rounds: int = _ROUNDS,
) -> list[PrefillRow]:
    """Time prompts of these lengths, cut to the context; empties the cache.

    NumPy's library uses as many threads as its own environment variables say, by default every core.
    """
    lengths = sorted({min(block, engine.context_length) for block in blocks})
    ids = programs.token_ids(config.vocab_size, lengths[-1]).tolist()

    def prefill_of(length: int) -> Callable[[], float]:
        def run() -> float:
            engine.truncate(0)
            return seconds_of(lambda: engine.forward(ids[:length], logits="last"))

        return run

    variants = {str(length): prefill_of(length) for length in lengths}
    variants["numpy"] = numpy_product()
    if find_spec("torch"):
        variants["torch"] = torch_product(threads or default_threads())
    taken = take_turns(variants, rounds, _LIMIT)
    engine.truncate(0)
    yardstick = {name: SQUARE_OPERATIONS / min(taken[name]) / 1e9 for name in ("numpy", "torch") if name in taken}
    rows = []
    for length in lengths:
        timing = Timing.of(taken[str(length)])
        operations = 2 * sum(
            programs.weight_count(weights, group.matrices) * (1 if group.name == "head" else length)
            for group in programs.products(config)
        )
        seconds = (timing.median, timing.low, timing.high)
        rows.append(PrefillRow(length, *seconds, operations, yardstick["numpy"], yardstick.get("torch")))
    return rows


def numpy_product() -> Callable[[], float]:
    """A call that multiplies two square float32 matrices with NumPy and returns the seconds."""
    a, b, out = (np.ones((_SIDE, _SIDE), dtype=np.float32) for _ in range(3))
    return lambda: seconds_of(lambda: np.matmul(a, b, out=out))


def torch_product(threads: int) -> Callable[[], float]:
    """A call that multiplies two square float32 tensors with torch and returns the seconds."""
    import torch

    a, b = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
    out = torch.empty(_SIDE, _SIDE)

    def run() -> float:
        torch.set_num_threads(threads)
        return seconds_of(lambda: torch.mm(a, b, out=out))

    return run
