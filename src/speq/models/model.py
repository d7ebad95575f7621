"""The engine: a model bound to a backend, with one KV cache that grows and is cut back.

It is the only thing that decoding sees of a model: feed tokens, get logits, take tokens back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.kernels.step import Logits, Step, Weights
from speq.models.cache import KVCache
from speq.models.config import ModelConfig
from speq.models.decoder import build_program
from speq.models.tensors import fit
from speq.turns import Turns

Backend: TypeAlias = Literal["native", "reference"]
CHUNK = 256
"""Most tokens in one pass of the backend; longer inputs are fed in several."""


class Checkpoint(Protocol):
    """What the engine needs of a converted checkpoint: ``config.json`` and the weights, split matrices and vectors."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def split(self) -> Weights: ...
    @property
    def raw(self) -> Weights: ...


class Engine:
    """One sequence on one model.

    Attributes:
        config: the model.
        vocab_size: columns of the logits.
        context_length: most tokens the cache takes.
        length: tokens in the cache.
    """

    def __init__(
        self,
        model: Checkpoint | tuple[Mapping[str, Any], Weights],
        backend: Backend = "native",
        threads: int | None = None,
        context: int | None = None,
    ) -> None:
        """Bind a model.

        Args:
            model: a converted checkpoint, or a parsed ``config.json`` and the weights by their Hugging Face names.
            backend: who computes.
            threads: of the native backend; None for one per core.
            context: most tokens in the cache; None for all that the model is made for.

        Raises:
            SpeqError: unsupported model, missing or misshapen weights, or a context that the model is not made for.
        """
        config, weights = model if isinstance(model, tuple) else (model.config, {**model.raw, **model.split})
        self.config: ModelConfig = fit(config, {name: weight.shape for name, weight in weights.items()})
        limit = self.config.context_length
        if context is not None and not 0 < context <= limit:
            raise SpeqError(f"a context of {context} tokens is outside what the model is made for, 1 to {limit}")
        self.vocab_size = self.config.vocab_size
        self.context_length = context or limit
        self.length = 0
        cache = KVCache(self.config.layers, self.config.kv_heads, self.context_length, self.config.head_dim)
        self._max_tokens = min(CHUNK, self.context_length)
        self._turns = Turns("the model's engine")
        self._step = _bind(backend, self.config, weights, cache, self._max_tokens, threads)

    def forward(
        self, tokens: Sequence[int] | NDArray[np.integer[Any]], *, draft: bool = False, logits: Logits = "last"
    ) -> NDArray[np.float32]:
        """Append ``tokens`` to the cache.

        Args:
            tokens: token ids, at least one.
            draft: compute with the weights' draft values.
            logits: of which of the tokens.

        Several threads may call: each call's tokens stay together, in the order in which the calls come to be made.

        Returns:
            Logits ``[0 | 1 | len(tokens), vocab_size]``; the caller's to keep.

        Raises:
            SpeqError: more tokens than the context has room for, or a token id outside the vocabulary. The cache is
                then unchanged. Or a call in the middle of another, or in a process that was forked since.
        """
        return self._turns.take(lambda: self._forward(tokens, draft, logits))

    def _forward(
        self, tokens: Sequence[int] | NDArray[np.integer[Any]], draft: bool, logits: Logits
    ) -> NDArray[np.float32]:
        ids = self._checked(tokens)
        parts: list[NDArray[np.float32]] = []
        for begin in range(0, len(ids), self._max_tokens):
            chunk = ids[begin : begin + self._max_tokens]
            last = begin + len(chunk) == len(ids)
            wanted: Logits = logits if logits == "all" or last else "none"
            result = self._step.run(chunk, self.length, draft=draft, logits=wanted)
            self.length += len(chunk)
            if last and not parts:
                return result
            if wanted == "all":
                parts.append(result)
        return np.concatenate(parts)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position ``length`` on."""
        self._turns.take(lambda: self._truncate(length))

    def _truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut {self.length} cached tokens to {length}")
        self.length = length

    def _checked(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or not len(ids):
            raise ValueError("forward needs a flat list of at least one token id")
        if self.length + len(ids) > self.context_length:
            raise SpeqError(
                f"{self.length + len(ids)} tokens do not fit in the context of {self.context_length}; shorten the input"
            )
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(outside):
            raise SpeqError(f"token id {outside[0]} is outside the model's vocabulary of {self.vocab_size}")
        return ids.astype(np.int32)


def _bind(
    backend: Backend, config: ModelConfig, weights: Weights, cache: KVCache, max_tokens: int, threads: int | None
) -> Step:
    program = build_program(config)
    if backend == "reference":
        from speq.kernels.reference import ReferenceStep

        return ReferenceStep(program, weights, cache, max_tokens)
    from speq.kernels.native import NativeStep

    return NativeStep(program, weights, cache, max_tokens, threads=threads)
