"""Second moments of what goes into each matrix product of a model, from a few texts.

The model is run segment by segment. Between segments only the residual stream is alive, so a segment sees all samples
before the next one begins, and the moments of one segment are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.bits.tensor import COLUMNS
from speq.calibration.samples import Sample
from speq.kernels import functional as F
from speq.kernels.native import NativeStep
from speq.kernels.ops import GatedLinear, Head, Linear, StepProgram
from speq.kernels.step import Weights
from speq.models.cache import KVCache
from speq.models.decoder import build_program
from speq.models.tensors import fit

WIDEST = 2048
"""Columns whose moments with each other are kept, at most."""

STREAM = "hidden"

Product = Linear | GatedLinear | Head
Moments = NDArray[np.float32]


def observe(
    config: Mapping[str, Any], weights: Weights, samples: Sequence[Sample], threads: int
) -> Iterator[dict[str, Moments]]:
    """Run the samples through the model, exactly.

    Args:
        config: the parsed ``config.json``.
        weights: all of the model's weights by name.
        samples: at least one.
        threads: of the kernels.

    Yields:
        For each segment the moments of its matrices by name: float32 ``[blocks, width, width]``, E[x x^T] of
        ``block_width(columns)`` inputs each, zero where the last block has no columns. Matrices that share their input
        share the array.
    """
    described = fit(config, {name: weight.shape for name, weight in weights.items()})
    program = build_program(described)
    longest = max(len(sample.tokens) for sample in samples)
    starts = np.cumsum([0, *(len(sample.tokens) - sample.known for sample in samples)])
    cache = KVCache(described.layers, described.kv_heads, longest, described.head_dim)
    step = NativeStep(program, weights, cache, longest, threads=threads)
    stream = step.buffer(STREAM)
    saved = [stream[: len(sample.tokens)].copy() for sample in samples]
    for first, last in _segments(program):
        inputs: dict[int, NDArray[np.float32]] = {}
        for sample, hidden, start in zip(samples, saved, starts, strict=False):
            count = len(sample.tokens)
            stream[:count] = hidden
            for index in range(first, last):
                op = program.ops[index]
                if isinstance(op, Product):
                    x = step.buffer(op.x)[sample.known : count]
                    if op.norm is not None:
                        x = F.rms_norm(x, _vector(weights, op.norm.weight), op.norm.eps)
                    if index not in inputs:
                        inputs[index] = np.empty((starts[-1], x.shape[1]), np.float32)
                    inputs[index][start : start + len(x)] = x
                if not isinstance(op, Head):
                    step.run_one(index, sample.tokens)
            hidden[:] = stream[:count]
        moments = {index: _moments(inputs.pop(index)) for index in list(inputs)}
        yield {name: moments[index] for index in moments for name in _matrices(program.ops[index])}


def block_width(columns: int) -> int:
    """Columns of a block: as few blocks as there can be, of equal width, in whole tiles."""
    blocks = -(-columns // WIDEST)
    return -(-columns // (blocks * COLUMNS)) * COLUMNS


def _segments(program: StepProgram) -> Iterator[tuple[int, int]]:
    """Ranges of operators, each of which ends by writing the residual stream."""
    first = 0
    for index, op in enumerate(program.ops, 1):
        if index == len(program.ops) or getattr(op, "out", None) == STREAM:
            yield first, index
            first = index


def _moments(x: NDArray[np.float32]) -> Moments:
    """Means of x x^T over ``[tokens, columns]`` in blocks of columns."""
    width = block_width(x.shape[1])
    moments = np.zeros((-(-x.shape[1] // width), width, width), np.float32)
    for i, block in enumerate(moments):
        part = x[:, i * width : (i + 1) * width]
        used = part.shape[1]
        block[:used, :used] = part.T @ part  # a matrix times its own transpose takes half the time
    moments /= np.float32(len(x))
    return moments


def _matrices(op: Any) -> tuple[str, ...]:
    if isinstance(op, GatedLinear):
        return op.gate, op.up
    return (op.weight,) if isinstance(op, Head) else tuple(op.weights)


def _vector(weights: Weights, name: str) -> NDArray[np.float32]:
    vector = weights[name]
    assert isinstance(vector, np.ndarray)
    return vector
