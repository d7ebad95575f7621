"""Second moments of what goes into each matrix product of a model, from a few texts.

The model is run segment by segment. Between segments only the residual stream is alive, so a segment sees all samples
before the next one begins, and the moments of one segment are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.calibration.samples import Sample
from speq.kernels import functional as F
from speq.kernels.native import NativeStep
from speq.kernels.ops import GatedLinear, Head, Linear, StepProgram
from speq.kernels.step import Weights
from speq.models.cache import KVCache
from speq.models.config import model_config
from speq.models.decoder import build_program

BLOCK = 256
"""Columns whose moments with each other are kept."""

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
        For each segment the moments of its matrices by name: float32 ``[blocks, BLOCK, BLOCK]``, E[x x^T] of BLOCK
        inputs each, zero where the last block has no columns. Matrices that share their input share the array.
    """
    described = model_config(config)
    program = build_program(described)
    longest = max(len(sample.tokens) for sample in samples)
    cache = KVCache(described.layers, described.kv_heads, longest, described.head_dim)
    step = NativeStep(program, weights, cache, longest, threads=threads)
    stream = step.buffer(STREAM)
    saved = [stream[: len(sample.tokens)].copy() for sample in samples]
    for first, last in _segments(program):
        inputs: dict[int, list[NDArray[np.float32]]] = {}
        for sample, hidden in zip(samples, saved, strict=True):
            count = len(sample.tokens)
            stream[:count] = hidden
            for index in range(first, last):
                op = program.ops[index]
                if isinstance(op, Product):
                    x = step.buffer(op.x)[sample.known : count]
                    if op.norm is not None:
                        x = F.rms_norm(x, _vector(weights, op.norm.weight), op.norm.eps)
                    inputs.setdefault(index, []).append(x.copy())
                if not isinstance(op, Head):
                    step.run_one(index, sample.tokens)
            hidden[:] = stream[:count]
        moments = {index: _moments(np.concatenate(parts)) for index, parts in inputs.items()}
        yield {name: moments[index] for index in inputs for name in _matrices(program.ops[index])}


def _segments(program: StepProgram) -> Iterator[tuple[int, int]]:
    """Ranges of operators, each of which ends by writing the residual stream."""
    first = 0
    for index, op in enumerate(program.ops, 1):
        if index == len(program.ops) or getattr(op, "out", None) == STREAM:
            yield first, index
            first = index


def _moments(x: NDArray[np.float32]) -> Moments:
    """Means of x x^T over ``[tokens, columns]`` in blocks of columns."""
    blocks = -(-x.shape[1] // BLOCK)
    padded = np.zeros((blocks, len(x), BLOCK), np.float32)
    for i, block in enumerate(padded):
        part = x[:, i * BLOCK : (i + 1) * BLOCK]
        block[:, : part.shape[1]] = part
    return np.asarray(np.matmul(padded.transpose(0, 2, 1), padded) / np.float32(len(x)))


def _matrices(op: Any) -> tuple[str, ...]:
    if isinstance(op, GatedLinear):
        return op.gate, op.up
    return (op.weight,) if isinstance(op, Head) else tuple(op.weights)


def _vector(weights: Weights, name: str) -> NDArray[np.float32]:
    vector = weights[name]
    assert isinstance(vector, np.ndarray)
    return vector
