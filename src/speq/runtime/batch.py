"""What travels: a batch of spans at a level, and what comes back.

A span is some tokens of one sequence, as a chain or as a tree; a batch is what all sequences want computed from the
same planes of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from speq.runtime.sampling import GREEDY, Choice, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from speq.runtime.kv import KVHandle, KVPool

Level: TypeAlias = Literal["draft", "exact"]
"""What a pass reads of the weights: the draft codes alone, or everything. The exact level defines the text."""


@dataclass(frozen=True)
class Span:
    """Tokens that follow what a sequence has in the cache.

    Attributes:
        kv: the sequence.
        tokens: at least one.
        parents: of a tree, for each token the index of the one it follows, -1 for the sequence's last; ``None`` for a
            chain.
        wanted: ascending indices of the tokens after which something is drawn.
        sampling: how; ``None`` draws nothing, then ``wanted`` says of which logits are wanted.
        confidences: whether greedy draws tell how sure they are, which takes a turn over the logits.
        likely: of how many of the most probable tokens each draw tells, at most ``MOST_LIKELY``; takes a turn, too.
    """

    kv: KVHandle
    tokens: Sequence[int]
    parents: Sequence[int] | None = None
    wanted: Sequence[int] = ()
    sampling: Sampling | None = None
    confidences: bool = False
    likely: int = 0


@dataclass(frozen=True)
class HeadSpan:
    """Rows of a trained head that follow what one sequence has in the head's cache.

    Attributes:
        kv: the sequence there.
        tokens: that the rows read, each the one after the hidden state beside it.
        states: these hidden states, those of the model at the head's taps ``[rows, taps * hidden]``, side by side, or
            outputs of the head ``[rows, hidden]``.
        of_model: which of the two.
        parents: of a tree, as in :class:`Span`.
        wanted: ascending rows that propose.
        sampling: how the tokens that are guessed will be drawn: temperature and filters count.
    """

    kv: KVHandle
    tokens: Sequence[int]
    states: NDArray[np.float32]
    of_model: bool = False
    parents: Sequence[int] | None = None
    wanted: Sequence[int] = ()
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class Batch:
    """Spans of different sequences, computed together at one level; ``taps`` names those that are kept."""

    spans: Sequence[Span]
    level: Level = "exact"
    taps: tuple[str, ...] = ()


class Limits(NamedTuple):
    """What an engine takes.

    Attributes:
        context: most tokens of a sequence.
        rows: most tokens of a batch.
        tree_rows: most tokens of a span that is a tree.
        quick_rows: most tokens of a batch that costs little more than one token.
        sequences: for how many sequences of full length there is room.
    """

    context: int
    rows: int
    tree_rows: int
    quick_rows: int
    sequences: int


class Output(Protocol):
    """What a batch gave."""

    def drawn(self, span: int) -> list[Choice]:
        """What was drawn after each of a span's wanted tokens; empty without a sampling.

        Raises:
            SpeqError: the logits are not finite.
        """
        ...

    def logits(self, span: int) -> NDArray[np.float32]:
        """The logits of a span's wanted tokens, ``[wanted, vocab]``; valid until the next batch."""
        ...

    def tap(self, span: int, name: str) -> NDArray[np.float32]:
        """What passed a tap for the tokens of a span, ``[tokens, width]``; valid until the next batch."""
        ...


class Engine(Protocol):
    """What computes batches; :class:`speq.runtime.engine.Engine` is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def taps(self) -> tuple[str, ...]: ...
    @property
    def kv(self) -> KVPool: ...
    def check(self, kv: KVHandle, tokens: Sequence[int]) -> None: ...
    def run(self, batch: Batch) -> Output: ...
