"""The reference backend: replays a step's operator list with the NumPy operators of :mod:`speq.kernels.functional`.

It is written to be read and compared against, not to be fast; weights are widened to float32 on first use and kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.bits import SplitTensor, decode, draft_values, to_float32
from speq.kernels import functional as F
from speq.kernels.ops import Attention, Embed, GatedLinear, Head, Linear, Norm, Op, StepProgram
from speq.kernels.step import Cache, Logits, Weights


class ReferenceStep:
    """A :class:`speq.kernels.step.Step` in NumPy."""

    def __init__(self, program: StepProgram, weights: Weights, cache: Cache, max_tokens: int) -> None:
        """Bind ``program`` to its weights (by name), a cache and room for ``max_tokens`` tokens a pass."""
        self._program = program
        self._weights = weights
        self._cache = cache
        self._max_tokens = max_tokens
        self._inv_freq = np.array(program.inv_freq, dtype=np.float32)
        self._buffers = {
            name: np.zeros((max_tokens, width), dtype=np.float32) for name, width in program.buffers.items()
        }
        self._widened: dict[tuple[str, bool], NDArray[np.float32]] = {}

    def run(
        self, tokens: NDArray[np.int32], start: int, *, draft: bool = False, logits: Logits = "last"
    ) -> NDArray[np.float32]:
        """See :meth:`speq.kernels.step.Step.run`."""
        count = len(tokens)
        if not 0 < count <= self._max_tokens:
            raise ValueError(f"{count} tokens in a step made for 1 to {self._max_tokens}")
        if start < 0 or start + count > self._cache.capacity:
            raise ValueError(f"positions {start} to {start + count} in a cache of {self._cache.capacity}")
        if tokens.min() < 0 or tokens.max() >= self._program.vocab_size:
            raise ValueError(f"a token id outside the vocabulary of {self._program.vocab_size}")
        result = np.zeros((0, self._program.vocab_size), dtype=np.float32)
        for op in self._program.ops:
            if not isinstance(op, Head):
                self._apply(op, tokens, start, draft)
            elif logits != "none":
                x = self._buffers[op.x][:count] if logits == "all" else self._buffers[op.x][count - 1 : count]
                result = self._multiply(self._norm(x, op.norm), op.weight, draft)
        return result

    def run_one(self, op: int, tokens: NDArray[np.int32]) -> None:
        """Run only operator ``op`` of the program, exactly, on ``tokens`` at positions 0, 1, ...

        What it reads and writes is in the buffers before and after.
        """
        self._apply(self._program.ops[op], tokens, 0, draft=False)

    def buffer(self, name: str) -> NDArray[np.float32]:
        """A buffer of the program in place, float32 ``[max_tokens, width]``."""
        return self._buffers[name]

    def _apply(self, op: Op, tokens: NDArray[np.int32], start: int, draft: bool) -> None:
        count = len(tokens)
        match op:
            case Embed():
                self._buffers[op.out][:count] = self._matrix(op.table, draft=False)[tokens]
            case Linear():
                self._linear(op, count, draft)
            case GatedLinear():
                x = self._norm(self._buffers[op.x][:count], op.norm)
                gate = F.silu(self._biased(self._multiply(x, op.gate, draft), op.gate_bias))
                self._buffers[op.out][:count] = gate * self._biased(self._multiply(x, op.up, draft), op.up_bias)
            case Attention():
                self._attention(op, count, start)

    def _linear(self, op: Linear, count: int, draft: bool) -> None:
        x = self._norm(self._buffers[op.x][:count], op.norm)
        biases = op.biases or (None,) * len(op.weights)
        parts = [
            self._biased(self._multiply(x, name, draft), bias) for name, bias in zip(op.weights, biases, strict=True)
        ]
        result = np.concatenate(parts, axis=1)
        out = self._buffers[op.out][:count]
        out[:] = out + result if op.accumulate else result

    def _attention(self, op: Attention, count: int, start: int) -> None:
        vectors = self._buffers[op.qkv][:count].reshape(count, op.heads + 2 * op.kv_heads, op.head_dim)
        q, k, v = np.split(vectors, [op.heads, op.heads + op.kv_heads], axis=1)
        q = F.rotate(self._norm(q, op.q_norm), start, self._inv_freq, self._program.rotary_scale)
        k = F.rotate(self._norm(k, op.k_norm), start, self._inv_freq, self._program.rotary_scale)
        keys, values = self._cache.keys[op.layer], self._cache.values[op.layer]
        with np.errstate(over="ignore"):  # a key beyond float16 becomes infinite here as in every backend
            keys[:, start : start + count] = k.transpose(1, 0, 2)
            values[:, start : start + count] = v.transpose(1, 0, 2)
        result = F.attention(q, keys, values, start, op.scale, op.window)
        self._buffers[op.out][:count] = result.reshape(count, -1)

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
