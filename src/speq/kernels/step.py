"""What every backend offers: a decoding step that is bound to weights and cache once and replayed for each pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.bits import SplitTensor

Weight: TypeAlias = SplitTensor | NDArray[np.float32]
Weights: TypeAlias = Mapping[str, Weight]
Logits: TypeAlias = Literal["none", "last", "all"]


class Cache(Protocol):
    """The KV cache as the operators see it: float16 ``[layers, kv_heads, capacity, head_dim]``, written in place."""

    keys: NDArray[np.float16]
    values: NDArray[np.float16]
    capacity: int


class Step(Protocol):
    """One pass over a few tokens; the same bits for a token whatever other tokens are in the pass."""

    def run(
        self, tokens: NDArray[np.int32], start: int, *, draft: bool = False, logits: Logits = "last"
    ) -> NDArray[np.float32]:
        """Process ``tokens`` at positions ``start``, ``start + 1``, ... and write their keys and values to the cache.

        Args:
            tokens: token ids ``[m]``, at least one and at most as many as the step was made for.
            start: position of the first; all positions before it are already in the cache.
            draft: read the weights' draft values instead of the exact ones (embedding rows stay exact).
            logits: of which tokens logits are wanted.

        Returns:
            Logits ``[0 | 1 | m, vocab]``, which later calls leave alone.

        Raises:
            ValueError: too many or no tokens, a token id outside the vocabulary, or no room in the cache.
        """
        ...
