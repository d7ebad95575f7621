"""The native step: a :class:`StepProgram` bound once to memory and replayed by one call into C++ without the GIL.

``SPEQ_ISA`` (``amx``, ``avx512``, ``avx2``, ``portable``) overrides the choice of kernels, whose exact passes give the
same bits in every case.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import singledispatchmethod

import numpy as np
from numpy.typing import NDArray

from speq import _native
from speq.errors import SpeqError
from speq.formats import SplitTensor, native_format
from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, Operator, Sample, StepProgram, Tap
from speq.graph.step import Cache, Drawn, Rows, Weights
from speq.processors import checked_threads

_NONE = np.zeros(0, np.int32)


def matrix(tensor: SplitTensor) -> _native.Matrix:
    """The native view of a split tensor, over the same memory, which it keeps alive."""
    return _native.Matrix.make(native_format(tensor.spec), tensor.shape, **tensor.planes())


def available_isas() -> list[str]:
    """Instruction sets this machine has kernels for, best first; ``portable`` is always among them."""
    return _native.available_isas()


class NativeStep:
    """One decoding step of a model on the CPU.

    Args:
        program: the operators.
        weights: split matrices and float32 vectors by name; kept alive and read in place.
        cache: the KV cache that the step reads and appends to.
        max_tokens: most rows of one :meth:`run`.
        threads: team size, by default one thread per available processor.
        isa: kernels to use, by default ``SPEQ_ISA`` or the best this machine can run.

    Raises:
        SpeqError: ``isa`` is not available here, the system does not start so many threads, or a weight is of another
            kind.
        ValueError: a weight or a buffer has another width than an operator needs.
    """

    def __init__(
        self,
        program: StepProgram,
        weights: Weights,
        cache: Cache,
        max_tokens: int,
        *,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        isa = isa or os.environ.get("SPEQ_ISA", "")
        if isa and isa not in available_isas():
            raise SpeqError(f"no kernels for '{isa}' on this machine; SPEQ_ISA may be: {', '.join(available_isas())}")
        threads = checked_threads(threads)
        self._weights = weights
        self._cache = cache
        self._keys, self._values = cache.keys.view(np.uint16), cache.values.view(np.uint16)
        self._step = _native.Step.make(
            isa,
            threads,
            max_tokens,
            self._keys,
            self._values,
            list(program.inv_freq),
            program.rotary_scale,
            program.vocab_size,
        )
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._buffers = {name: self._step.add_buffer(width) for name, width in program.buffers.items()}
        self._matrices: dict[str, int] = {}
        self._taps: dict[str, int] = {}
        self._last = Rows(_NONE, ())
        self._ends: list[int] = []  # of the native operators that each operator of the program became
        for op in program.ops:
            self._add(op)
            self._ends.append(self._step.operators)
        self._step.bind()

    @property
    def isa(self) -> str:
        return self._step.isa

    @property
    def threads(self) -> int:
        return self._step.threads

    def run(self, rows: Rows) -> None:
        """See :meth:`speq.graph.step.Step.run`."""
        self._run(rows, 0, self._step.operators)

    def logits(self) -> NDArray[np.float32]:
        """The logits of the rows that the last pass wanted, ``[wanted, vocab]``, which later passes leave alone."""
        return self._step.logits()

    def drawn(self) -> list[Drawn]:
        """See :meth:`speq.graph.step.Step.drawn`."""
        return self._step.drawn()

    def tapped(self, name: str) -> NDArray[np.float32]:
        """What passed a tap that the last pass asked for, float32 ``[rows, width]``: a view."""
        if name not in self._last.taps:
            raise ValueError(f"the last pass did not ask for the tap {name!r}")
        return self._step.tapped(self._taps[name])[: len(self._last.tokens)]

    def run_part(self, rows: Rows, first: int, last: int) -> None:
        """See :meth:`speq.graph.step.PartStep.run_part`."""
        self._run(rows, self._ends[first - 1] if first else 0, self._ends[last - 1])

    def run_one(self, op: int, rows: Rows) -> None:
        """Run only operator ``op`` of the program.

        What it reads and writes is in the buffers before and after. For those who look inside a model.
        """
        self.run_part(rows, op, op + 1)

    def _run(self, rows: Rows, first: int, last: int) -> None:
        unknown = [name for name in rows.taps if name not in self._taps]
        if unknown:
            raise ValueError(f"there is no tap {unknown[0]!r}")
        parents = _NONE
        if any(span.parents is not None for span in rows.spans):
            parents = np.concatenate([_parents(span.parents, span.count) for span in rows.spans])
        spans = np.array([(span.start, span.count) for span in rows.spans], np.int32).reshape(-1, 2)
        pages = np.array([page for span in rows.spans for page in span.pages], np.int32)
        taps = [self._taps[name] for name in rows.taps]
        tokens, wanted = np.ascontiguousarray(rows.tokens, np.int32), np.ascontiguousarray(rows.wanted, np.int32)
        self._last = Rows(_NONE, ())
        self._step.run(
            tokens, spans, pages, parents, wanted, rows.draft, list(rows.draws), rows.confidences, taps, first, last
        )
        self._last = rows

    def buffer(self, name: str) -> NDArray[np.float32]:
        """A buffer of the program in place, float32 ``[max_tokens, width]``."""
        return self._step.buffer(self._buffers[name])

    def _matrix(self, name: str) -> int:
        if name not in self._matrices:
            self._matrices[name] = self._step.add_matrix(matrix(self._split(name)))
        return self._matrices[name]

    def _split(self, name: str) -> SplitTensor:
        tensor = self._weights[name]
        if not isinstance(tensor, SplitTensor):
            raise SpeqError(f"{name} is not stored as a split matrix; convert the model again")
        return tensor

    def _vector(self, name: str) -> NDArray[np.float32]:
        if name not in self._vectors:
            vector = self._weights[name]
            if isinstance(vector, SplitTensor):
                raise SpeqError(f"{name} is stored as a split matrix, not as a vector; convert the model again")
            self._vectors[name] = np.ascontiguousarray(vector, dtype=np.float32)
        return self._vectors[name]

    def _norm(self, norm: Norm | None) -> tuple[NDArray[np.float32] | None, float]:
        return (self._vector(norm.weight), norm.eps) if norm else (None, 0.0)

    def _rows(self, name: str) -> int:
        rows: int = self._weights[name].shape[0]
        return rows

    @singledispatchmethod
    def _add(self, op: Operator) -> None:
        raise TypeError(f"the native step has no operator {type(op).__name__}")

    @_add.register
    def _embed(self, op: Embed) -> None:
        self._step.embed(self._matrix(op.table), self._buffers[op.out])

    @_add.register
    def _linear(self, op: Linear) -> None:
        biases = op.biases or (None,) * len(op.weights)
        parts, column = [], 0
        for name, bias in zip(op.weights, biases, strict=True):
            parts.append((self._matrix(name), column, self._vector(bias) if bias else None))
            column += self._rows(name)
        self._step.linear(self._buffers[op.x], self._norm(op.norm), parts, self._buffers[op.out], op.accumulate)

    @_add.register
    def _gated_linear(self, op: GatedLinear) -> None:
        gate, up, buffers = self._matrix(op.gate), self._matrix(op.up), self._buffers
        if self._split(op.gate).spec.dtype != self._split(op.up).spec.dtype:
            raise SpeqError(f"{op.gate} and {op.up} differ in dtype; convert the checkpoint with --dtype")
        gate_bias, up_bias = (self._vector(bias) if bias else None for bias in (op.gate_bias, op.up_bias))
        self._step.gated_linear(buffers[op.x], self._norm(op.norm), gate, up, buffers[op.out], gate_bias, up_bias)

    @_add.register
    def _attention(self, op: Attention) -> None:
        shape = (op.layer, op.heads, op.kv_heads, op.head_dim)
        norms = self._norm(op.q_norm), self._norm(op.k_norm)
        buffers = self._buffers[op.qkv], self._buffers[op.out]
        self._step.attention(*buffers, *shape, op.scale, op.window or 0, *norms)

    @_add.register
    def _tap(self, op: Tap) -> None:
        self._taps[op.name] = self._step.tap(self._buffers[op.x])

    @_add.register
    def _lm_head(self, op: LMHead) -> None:
        self._step.head(self._buffers[op.x], self._norm(op.norm), self._matrix(op.weight))

    @_add.register
    def _sample(self, op: Sample) -> None:
        self._step.sample()


def _parents(parents: Sequence[int] | None, count: int) -> NDArray[np.int32]:
    """As the native step takes them: in a chain every row follows the one before it."""
    if parents is None:
        return np.arange(-1, count - 1, dtype=np.int32)
    if len(parents) != count:
        raise ValueError("every row needs a parent")
    return np.asarray(parents, np.int32)
