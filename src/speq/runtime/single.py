"""One sequence on an engine, for whoever looks at logits: feed tokens, get logits, take tokens back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from speq.runtime.batch import Batch, Engine, Span
from speq.runtime.turns import Turns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from speq.graph.step import Weights
    from speq.runtime.engine import Backend, Checkpoint

Logits: TypeAlias = Literal["none", "last", "all"]


class SingleSequence:
    """A sequence of its own in an engine's pool.

    Attributes:
        engine: what computes.
        kv: the sequence.
    """

    def __init__(self, engine: Engine, turns: Turns | None = None) -> None:
        """Begin an empty sequence; ``turns`` are those of whoever else uses the engine."""
        self.engine = engine
        self.kv = engine.kv.open()
        self._turns = turns or Turns("the model's engine")

    @classmethod
    def of(
        cls,
        model: Checkpoint | tuple[Mapping[str, Any], Weights],
        backend: Backend = "native",
        threads: int | None = None,
        context: int | None = None,
    ) -> SingleSequence:
        """On an engine of its own; the arguments are those of :class:`speq.runtime.engine.Engine`."""
        from speq.runtime.engine import Engine as ModelEngine

        return cls(ModelEngine(model, backend, threads, context))

    @property
    def vocab_size(self) -> int:
        return self.engine.vocab_size

    @property
    def context_length(self) -> int:
        """The most tokens the cache takes."""
        return self.engine.limits.context

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.kv.length

    def forward(
        self, tokens: Sequence[int] | NDArray[np.integer[Any]], *, draft: bool = False, logits: Logits = "last"
    ) -> NDArray[np.float32]:
        """Append ``tokens`` to the cache, in as many batches as it takes.

        Several threads may call: each call's tokens stay together, in the order in which the calls come to be made.

        Args:
            tokens: token ids, at least one.
            draft: compute with the weights' draft values.
            logits: of which of the tokens.

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
        import numpy as np

        array = np.asarray(tokens)
        if array.ndim != 1 or not len(array):
            raise ValueError("forward needs a flat list of at least one token id")
        ids: list[int] = array.tolist()
        self.engine.check(self.kv, ids)
        rows = self.engine.limits.rows
        parts: list[NDArray[np.float32]] = []
        for begin in range(0, len(ids), rows):
            chunk = ids[begin : begin + rows]
            last = begin + len(chunk) == len(ids)
            wanted = range(len(chunk)) if logits == "all" else range(len(chunk) - 1, len(chunk)) if last else range(0)
            span = Span(self.kv, chunk, wanted=range(0) if logits == "none" else wanted)
            output = self.engine.run(Batch([span], "draft" if draft else "exact"))
            if last and not parts:
                return output.logits(0)
            if logits == "all":
                parts.append(output.logits(0))
        return np.concatenate(parts)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position ``length`` on."""
        self._turns.take(lambda: self.engine.kv.truncate(self.kv, length))
