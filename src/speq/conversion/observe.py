"""Second moments of what goes into each matrix product of a model, from a few texts.

The model is run segment by segment. Between segments only the residual stream is alive, so a segment sees all samples
before the next one begins, and the moments of one segment are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.backends.cpu import NativeStep
from speq.backends.reference import functional as F
from speq.conversion.kept import Kept, Pace
from speq.conversion.samples import Sample
from speq.formats.tensor import COLUMNS
from speq.graph.ops import StepProgram
from speq.graph.step import Weights, chain
from speq.models.decoder import build_program
from speq.models.tensors import fit
from speq.runtime.kv import KVPool

WIDEST = 2048
"""Columns whose moments with each other are kept, at most."""

STREAM = "hidden"

Moments = NDArray[np.float32]


def observe(
    config: Mapping[str, Any],
    weights: Weights,
    samples: Sequence[Sample],
    threads: int,
    kept: Kept | None = None,
) -> Iterator[dict[str, Moments]]:
    """Run the samples through the model, exactly.

    Args:
        config: the parsed ``config.json``.
        weights: all of the model's weights by name.
        samples: at least one.
        threads: of the kernels.
        kept: where the samples that a segment has seen are kept, so that another process can go on from there.

    Yields:
        For each segment, or for those from the last kept one on, the moments of its matrices by name: float32
        ``[blocks, width, width]``, E[x x^T] of ``block_width(columns)`` inputs each, zero where the last block has no
        columns. Matrices that share their input share the array.
    """
    run = _Run(config, weights, samples, threads, kept)
    segments = list(_segments(run.program))
    begin = run.resume(len(segments))
    for segment, (first, last) in enumerate(segments[begin:], begin):
        inputs = run.through(segment, first, last)
        moments: dict[int, Moments] = {}
        for index in list(inputs):
            moments[index] = _kept_moments(inputs.pop(index), kept, f"moments {index}")
        yield {name: moments[index] for index in moments for name in run.program.ops[index].products}
        if kept is not None:
            for index in moments:
                kept.drop(f"moments {index}")


class _Run:
    """The samples on their way through a model: the residual stream of each.

    What is kept of a segment are the stream as the segment begins, as unit 0, and sample ``i`` as unit ``i + 1``: where
    the segment has left its stream, and its inputs of products.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Weights,
        samples: Sequence[Sample],
        threads: int,
        kept: Kept | None,
    ) -> None:
        described = fit(config, {name: weight.shape for name, weight in weights.items()})
        longest = max(len(sample.tokens) for sample in samples)
        cache = KVPool(described.layers, described.kv_heads, described.head_dim, context=longest)
        self.program = build_program(described)
        self._weights, self._samples = weights, samples
        self._step = NativeStep(self.program, weights, cache, longest, threads=threads)
        self._places = np.cumsum([0, *(len(sample.tokens) for sample in samples)])
        self._counted = np.cumsum([0, *(len(sample.tokens) - sample.known for sample in samples)])
        self._stream = np.zeros((self._places[-1], self._step.buffer(STREAM).shape[1]), np.float32)
        self._kept, self._pace, self._latest = kept, Pace(), 0

    def resume(self, segments: int) -> int:
        """The last segment whose beginning is kept; the first one if there is none."""
        if self._kept is not None:
            for segment in reversed(range(segments)):
                if next(self._kept.ranges(_name(segment)), None) is not None:
                    self._latest = segment
                    return segment
        return 0

    def through(self, segment: int, first: int, last: int) -> dict[int, NDArray[np.float32]]:
        """Run all samples through a segment, the operators ``first`` to ``last`` (exclusive).

        Returns:
            By the place of each product its inputs ``[tokens, columns]``.
        """
        inputs: dict[int, NDArray[np.float32]] = {}
        done = kept = self._take_over(segment, inputs)
        if not done and self._pace.due():
            self._keep(segment, 0, 1, inputs)
            kept = 1
        for unit in range(max(done, 1), len(self._samples) + 1):
            self._sample(unit - 1, first, last, inputs)
            if self._pace.due():
                self._keep(segment, kept, unit + 1, inputs)
                kept = unit + 1
        return inputs

    def _sample(self, i: int, first: int, last: int, inputs: dict[int, NDArray[np.float32]]) -> None:
        sample, hidden = self._samples[i], self._stream[self._places[i] : self._places[i + 1]]
        count, start = len(sample.tokens), self._counted[i]
        stream = self._step.buffer(STREAM)
        stream[:count] = hidden
        for index in range(first, last):
            op = self.program.ops[index]
            if op.products:
                x = self._step.buffer(op.reads[0])[sample.known : count]
                if op.norm is not None:
                    x = F.rms_norm(x, _vector(self._weights, op.norm.weight), op.norm.eps)
                if index not in inputs:
                    inputs[index] = np.empty((self._counted[-1], x.shape[1]), np.float32)
                inputs[index][start : start + len(x)] = x
            if op.writes:
                self._step.run_one(index, chain(sample.tokens))
        hidden[:] = stream[:count]

    def _keep(self, segment: int, start: int, stop: int, inputs: Mapping[int, NDArray[np.float32]]) -> None:
        """Keep units; with the first one all of the stream, as the samples to come are where they were."""
        if self._kept is None:
            return
        begin = max(start - 1, 0)
        places = slice(self._places[begin], self._places[stop - 1] if start else None)
        counted = slice(self._counted[begin], self._counted[stop - 1])
        arrays = {STREAM: self._stream[places]} | {str(index): x[counted] for index, x in inputs.items()}
        self._kept.keep(_name(segment), start, stop, arrays)
        if segment != self._latest:
            self._kept.drop(_name(self._latest))
            self._latest = segment

    def _take_over(self, segment: int, inputs: dict[int, NDArray[np.float32]]) -> int:
        """Go on from what is kept of a segment; returns how many units that is."""
        done = 0
        for start, stop, arrays in self._kept.ranges(_name(segment)) if self._kept is not None else ():
            begin = max(start - 1, 0)
            for name, array in arrays.items():
                if name == STREAM:
                    self._stream[self._places[begin] : self._places[begin] + len(array)] = array
                    continue
                if int(name) not in inputs:
                    inputs[int(name)] = np.empty((self._counted[-1], array.shape[1]), np.float32)
                inputs[int(name)][self._counted[begin] : self._counted[stop - 1]] = array
            done = stop
        return done


def _name(segment: int) -> str:
    return f"segment {segment}"


def block_width(columns: int) -> int:
    """Columns of a block: as few blocks as there can be, of equal width, in whole tiles."""
    blocks = -(-columns // WIDEST)
    return -(-columns // (blocks * COLUMNS)) * COLUMNS


def _segments(program: StepProgram) -> Iterator[tuple[int, int]]:
    """Ranges of operators, each of which ends by writing the residual stream."""
    first = 0
    for index, op in enumerate(program.ops, 1):
        if index == len(program.ops) or STREAM in op.writes:
            yield first, index
            first = index


def _kept_moments(x: NDArray[np.float32], kept: Kept | None, step: str) -> Moments:
    """The moments of inputs, kept for the next process if they took long."""
    if kept is None:
        return _moments(x)
    for _, _, arrays in kept.ranges(step):
        moments: Moments = arrays["moments"]
        return moments
    pace = Pace()
    moments = _moments(x)
    if pace.due():
        kept.keep(step, 0, 1, {"moments": moments})
    return moments


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


def _vector(weights: Weights, name: str) -> NDArray[np.float32]:
    vector = weights[name]
    assert isinstance(vector, np.ndarray)
    return vector
