"""Each matrix product of a model alone, over all layers: time, bytes per second and the ratio to plain FP16.

In every round a product runs as a plain pass, as a draft pass and as verify passes over more tokens; beside it run the
same product in plain FP16 and a reading of memory with no work at all, so that ratios are of one moment.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speq import _native
from speq.bench import programs
from speq.bench.machine import read_bandwidth
from speq.bench.prefill import SQUARE_OPERATIONS, numpy_product
from speq.bench.timing import Timing, seconds_of, take_turns
from speq.graph.step import Weights, chain
from speq.models.config import ModelConfig
from speq.processors import default_threads

TOKENS = (1, 2, 4, 8, 16)
_CACHED = 1 << 28  # bytes; less than this may stay in a cache from one round to the next
_HALF_BYTES = 1 << 28  # of the plain FP16 matrix at most; the time is scaled to all rows
_ROUNDS, _LIMIT = 15, 20.0
_CLOCK = 1e-7  # seconds that no measurement falls below


@dataclass(frozen=True)
class KernelRow:
    """One matrix product in one kind of pass.

    Attributes:
        operator: which product, of all layers together.
        kind: ``plain``, ``draft`` or ``verify``.
        tokens: in the pass.
        seconds: median, without the embedding row that every pass begins with.
        bytes: of weights that the pass reads.
        bandwidth: bytes per second that reading alone reached in the same rounds.
        half_seconds: the same product for one token with plain FP16 weights.
        peak: operations per second of a large float32 product by NumPy's library, in the same rounds.
        operations: multiplications and additions.
    """

    operator: str
    kind: str
    tokens: int
    seconds: float
    low: float
    high: float
    bytes: int
    bandwidth: float
    half_seconds: float
    peak: float
    operations: int

    @property
    def rate(self) -> float:
        """Bytes of weights per second."""
        return self.bytes / self.seconds

    @property
    def bandwidth_share(self) -> float:
        """Its share of the measured read bandwidth."""
        return self.rate / self.bandwidth

    @property
    def half_ratio(self) -> float:
        """Time over that of plain FP16 for one token."""
        return self.seconds / self.half_seconds

    @property
    def gflops(self) -> float:
        return self.operations / self.seconds / 1e9


def measure_kernels(
    config: ModelConfig,
    weights: Weights,
    *,
    threads: int | None = None,
    tokens: Sequence[int] = TOKENS,
    rounds: int = _ROUNDS,
    report: Callable[[str], None] = lambda _: None,
) -> list[KernelRow]:
    """Time every matrix product of a model.

    Args:
        config, weights: the model.
        threads: of all measurements; None for every core.
        tokens: sizes of the exact passes; 1 is the plain one.
        rounds: most rounds for each product.
        report: called with the name of the product that is about to be measured.
    """
    rows: list[KernelRow] = []
    for group in programs.products(config):
        report(group.name)
        rows += measure_product(config, weights, group, threads=threads, tokens=tokens, rounds=rounds)
    return rows


def measure_product(
    config: ModelConfig,
    weights: Weights,
    group: programs.Group,
    *,
    threads: int | None = None,
    tokens: Sequence[int] = TOKENS,
    rounds: int = _ROUNDS,
) -> list[KernelRow]:
    """Time one group of matrix products; see :func:`measure_kernels`."""
    most = max(tokens)
    cache = programs.small_cache(config, most)
    step = programs.bind(config, weights, group.ops, cache, most, threads)
    empty = programs.bind(config, weights, (), cache, most, threads)
    ids = programs.token_ids(config.vocab_size, most)
    small = programs.plane_bytes(weights, group.matrices, draft=False) < _CACHED

    def pass_of(count: int, draft: bool) -> Callable[[], float]:
        def run() -> float:
            if small:
                programs.evict()
            whole = seconds_of(lambda: step.run(chain(ids[:count], draft=draft, logits="all")))
            embedding = seconds_of(lambda: empty.run(chain(ids[:count], draft=draft)))
            return max(whole - embedding, _CLOCK)

        return run

    variants = {f"exact {n}": pass_of(n, False) for n in tokens}
    variants["draft 1"] = pass_of(1, True)
    variants["half"] = plain_half(weights, group.matrices, threads)
    variants["square"] = numpy_product()
    variants["bandwidth"] = lambda: read_bandwidth(threads, gigabytes=0.25, repeats=2)
    taken = take_turns(variants, rounds, _LIMIT)
    half, bandwidth = (float(np.median(taken[name])) for name in ("half", "bandwidth"))
    peak = SQUARE_OPERATIONS / float(np.median(taken["square"]))
    count = programs.weight_count(weights, group.matrices)

    def row(name: str) -> KernelRow:
        precision, n = name.split()
        kind = "draft" if precision == "draft" else "plain" if n == "1" else "verify"
        timing = Timing.of(taken[name])
        read = programs.plane_bytes(weights, group.matrices, draft=kind == "draft")
        seconds = (timing.median, timing.low, timing.high)
        return KernelRow(group.name, kind, int(n), *seconds, read, bandwidth, half, peak, 2 * count * int(n))

    return [row("draft 1"), *(row(f"exact {n}") for n in tokens)]


def plain_half(weights: Weights, names: Sequence[str], threads: int | None) -> Callable[[], float]:
    """A call that multiplies matrices of these shapes, in FP16 and with one token, and returns the seconds it took.

    All matrices have the same number of columns and stand one below the other, in memory of the same page size as the
    mapped files that models are read from: huge pages would make the yardstick faster than what is measured by it.
    """
    columns = int(weights[names[0]].shape[1])
    rows = sum(int(weights[name].shape[0]) for name in names)
    held = min(rows, _HALF_BYTES // (2 * columns) + 1)
    ones = _small_pages(held, columns)
    ones[...] = 0x3C00
    x, y = np.ones(columns, dtype=np.float32), np.empty(held, dtype=np.float32)

    def run() -> float:
        if ones.nbytes < _CACHED // 2:
            programs.evict()
        seconds = _native.half_product(ones, x, y, threads or default_threads())
        return seconds * rows / held

    return run


def _small_pages(rows: int, columns: int) -> NDArray[np.uint16]:
    """Zeros that the system does not put into huge pages, as it would those of NumPy."""
    memory = mmap.mmap(-1, 2 * rows * columns)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint16).reshape(rows, columns)
