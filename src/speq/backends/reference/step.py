"""The reference backend: replays a step's operator list with the NumPy operators of
:mod:`speq.backends.reference.functional`.

It is written to be read and compared against, not to be fast; weights are widened to float32 on first use and kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq import _native
from speq.backends.reference import functional as F
from speq.formats import SplitTensor, decode, draft_values, to_float32
from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, Operator, Sample, StepProgram, Tap
from speq.graph.step import Cache, Drawn, Rows, SpanRows, Weights, path, positions
from speq.limits import PAGE, TREE_ROWS


class ReferenceStep:
    """A :class:`speq.graph.step.Step` in NumPy."""

    def __init__(self, program: StepProgram, weights: Weights, cache: Cache, max_tokens: int) -> None:
        """Bind ``program`` to its weights (by name), a cache and room for ``max_tokens`` rows a pass."""
        self._program = program
        self._weights = weights
        self._cache = cache
        self._max_tokens = max_tokens
        self._inv_freq = np.array(program.inv_freq, dtype=np.float32)
        self._buffers = {
            name: np.zeros((max_tokens, width), dtype=np.float32) for name, width in program.buffers.items()
        }
        self._widened: dict[tuple[str, bool], NDArray[np.float32]] = {}
        self._logits = np.zeros((0, program.vocab_size), dtype=np.float32)
        self._drawn: list[Drawn] = []
        self._tapped: dict[str, NDArray[np.float32]] = {}

    def run(self, rows: Rows) -> None:
        """See :meth:`speq.graph.step.Step.run`."""
        self.run_part(rows, 0, len(self._program.ops))
        unknown = set(rows.taps) - set(self._tapped)
        if unknown:
            raise ValueError(f"there is no tap {min(unknown)!r}")

    def run_part(self, rows: Rows, first: int, last: int) -> None:
        """See :meth:`speq.graph.step.PartStep.run_part`."""
        self._check(rows)
        self._drawn, self._tapped = [], {}
        for op in self._program.ops[first:last]:
            self._apply(op, rows)

    def logits(self) -> NDArray[np.float32]:
        """See :meth:`speq.graph.step.Step.logits`."""
        return self._logits

    def drawn(self) -> list[Drawn]:
        """See :meth:`speq.graph.step.Step.drawn`."""
        return self._drawn

    def tapped(self, name: str) -> NDArray[np.float32]:
        """See :meth:`speq.graph.step.Step.tapped`."""
        if name not in self._tapped:
            raise ValueError(f"the last pass did not ask for the tap {name!r}")
        return self._tapped[name]

    def run_one(self, op: int, rows: Rows) -> None:
        """Run only operator ``op`` of the program; what it reads and writes is in the buffers before and after."""
        self._apply(self._program.ops[op], rows)

    def _check(self, rows: Rows) -> None:
        count, vocab = len(rows.tokens), self._program.vocab_size
        if not 0 < count <= self._max_tokens:
            raise ValueError(f"{count} rows in a step made for 1 to {self._max_tokens}")
        if rows.tokens.min() < 0 or rows.tokens.max() >= vocab:
            raise ValueError(f"a token id outside the vocabulary of {vocab}")
        if sum(span.count for span in rows.spans) != count:
            raise ValueError("the spans do not fit the rows")
        for span in rows.spans:
            positions(span)
            if span.start < 0 or span.count < 1 or len(span.pages) != -(-(span.start + span.count) // PAGE):
                raise ValueError("a span does not fit its pages")
            if not all(0 <= page < len(self._cache.keys) for page in span.pages):
                raise ValueError("there is no such page")
            if span.parents is not None and len(span.parents) != span.count:
                raise ValueError("every row needs a parent")
            is_chain = span.parents is None or list(span.parents) == list(range(-1, span.count - 1))
            if span.count > TREE_ROWS and not is_chain:
                raise ValueError(f"a tree of {span.count} rows, more than {TREE_ROWS}")

    def buffer(self, name: str) -> NDArray[np.float32]:
        """A buffer of the program in place, float32 ``[max_tokens, width]``."""
        return self._buffers[name]

    def _apply(self, op: Operator, rows: Rows) -> None:
        count, draft = len(rows.tokens), rows.draft
        match op:
            case Embed():
                self._buffers[op.out][:count] = self._matrix(op.table, draft=False)[rows.tokens]
            case Linear():
                self._linear(op, count, draft)
            case GatedLinear():
                x = self._norm(self._buffers[op.x][:count], op.norm)
                gate = F.silu(self._biased(self._multiply(x, op.gate, draft), op.gate_bias))
                self._buffers[op.out][:count] = gate * self._biased(self._multiply(x, op.up, draft), op.up_bias)
            case Attention():
                first = 0
                for span in rows.spans:
                    self._attention(op, first, span)
                    first += span.count
            case Tap():
                if op.name in rows.taps:
                    self._tapped[op.name] = self._buffers[op.x][:count].copy()
            case LMHead():
                x = self._norm(self._buffers[op.x][rows.wanted], op.norm)
                self._logits = self._multiply(x, op.weight, draft)
            case Sample():
                self._drawn = [
                    _native.draw(logits, *draw, rows.confidences)
                    for logits, draw in zip(self._logits, rows.draws, strict=False)
                ]
            case _:
                raise TypeError(f"the reference step has no operator {type(op).__name__}")

    def _linear(self, op: Linear, count: int, draft: bool) -> None:
        x = self._norm(self._buffers[op.x][:count], op.norm)
        biases = op.biases or (None,) * len(op.weights)
        parts = [
            self._biased(self._multiply(x, name, draft), bias) for name, bias in zip(op.weights, biases, strict=True)
        ]
        result = np.concatenate(parts, axis=1)
        out = self._buffers[op.out][:count]
        out[:] = out + result if op.accumulate else result

    def _attention(self, op: Attention, first: int, span: SpanRows) -> None:
        """Attention of the rows of a span, which begin at row ``first`` of the pass."""
        rows = slice(first, first + span.count)
        vectors = self._buffers[op.qkv][rows].reshape(span.count, op.heads + 2 * op.kv_heads, op.head_dim)
        q, k, v = np.split(vectors, [op.heads, op.heads + op.kv_heads], axis=1)
        at = positions(span)
        q = F.rotate(self._norm(q, op.q_norm), at, self._inv_freq, self._program.rotary_scale)
        k = F.rotate(self._norm(k, op.k_norm), at, self._inv_freq, self._program.rotary_scale)
        pages, slots = np.array(span.pages), np.arange(span.start, span.start + span.count)
        keys, values = self._cache.keys[:, op.layer], self._cache.values[:, op.layer]
        with np.errstate(over="ignore"):  # a key beyond float16 becomes infinite here as in every backend
            keys[pages[slots // PAGE], :, slots % PAGE] = k
            values[pages[slots // PAGE], :, slots % PAGE] = v
        before = np.arange(span.start)
        for row in range(span.count):
            own = range(row + 1) if span.parents is None else path(span.parents, row)
            seen = np.concatenate([before, span.start + np.array(own)])
            seen = seen if op.window is None else seen[-op.window :]
            taken = (pages[seen // PAGE], slice(None), seen % PAGE)
            result = F.attention(q[row], keys[taken].swapaxes(0, 1), values[taken].swapaxes(0, 1), op.scale)
            self._buffers[op.out][first + row] = result.reshape(-1)

    def _norm(self, x: NDArray[np.float32], norm: Norm | None) -> NDArray[np.float32]:
        return x if norm is None else F.rms_norm(x, self._vector(norm.weight), norm.eps)

    def _biased(self, product: NDArray[np.float32], bias: str | None) -> NDArray[np.float32]:
        return product if bias is None else product + self._vector(bias)

    def _multiply(self, x: NDArray[np.float32], name: str, draft: bool) -> NDArray[np.float32]:
        """The product with a matrix, exact BF16 ones of activations that are rounded to BF16."""
        weight = self._weights[name]
        if isinstance(weight, SplitTensor) and weight.spec.dtype == "bf16" and not draft:
            x = F.round_to_bf16(x)
        return F.linear(x, self._matrix(name, draft))

    def _vector(self, name: str) -> NDArray[np.float32]:
        weight = self._weights[name]
        if isinstance(weight, SplitTensor):
            raise ValueError(f"{name} is a matrix where a vector is needed")
        return weight

    def _matrix(self, name: str, draft: bool) -> NDArray[np.float32]:
        weight = self._weights[name]
        if not isinstance(weight, SplitTensor):
            return weight
        if (name, draft) not in self._widened:
            self._widened[name, draft] = (
                draft_values(weight) if draft else to_float32(decode(weight), weight.spec.dtype)
            )
        return self._widened[name, draft]
