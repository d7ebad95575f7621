"""What decoding needs from a model: one pass over some tokens, and taking back what a pass appended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Engine(Protocol):
    """A model bound to one KV cache; :class:`speq.models.Engine` is one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int:
        """The most tokens the cache can hold."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def forward(
        self, tokens: Sequence[int], *, draft: bool = False, logits: Literal["none", "last", "all"] = "last"
    ) -> NDArray[np.float32]:
        """Append ``tokens`` to the cache and return float32 logits ``[0 | 1 | len(tokens), vocab]``.

        Row t predicts the token after ``tokens[t]``. With ``draft`` only the draft codes of the weights are read. Later
        calls leave the rows alone.
        """

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
