"""What every backend offers: a decoding step that is bound to weights and a KV cache once and replayed for each pass.

What travels is a :class:`Rows`: the tokens of a pass as rows, grouped into spans of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.formats import SplitTensor
from speq.limits import PAGE

Weight: TypeAlias = SplitTensor | NDArray[np.float32]
Weights: TypeAlias = Mapping[str, Weight]


class Cache(Protocol):
    """Keys and values as the operators see them: float16 ``[pages, layers, kv_heads, PAGE, head_dim]``, written in
    place.
    """

    keys: NDArray[np.float16]
    values: NDArray[np.float16]


class Draw(NamedTuple):
    """How a token is drawn from a row of logits: see :class:`speq.runtime.sampling.Sampling`.

    Temperature 0 is greedy; ``position`` is where the token will stand in its sequence. ``likely`` of the most probable
    tokens are told beside the one that is drawn, at most ``MOST_LIKELY``.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int
    likely: int = 0


Drawn: TypeAlias = tuple[int, float, list[tuple[int, float]]]
"""A drawn token, -1 where a logit is not finite; how sure the draw was; and the most probable (token, probability)
after temperature and filters, the most probable first, of equally probable ones the lower id.
"""


@dataclass(frozen=True)
class SpanRows:
    """Neighbouring rows of one sequence.

    Row i writes its keys and values to slot ``start + i`` of the sequence and has the position ``start + depth(i)``. It
    attends to the ``start`` slots before and to the rows on its path.

    Attributes:
        start: slots that are filled already.
        count: rows.
        pages: page numbers of the slots up to ``start + count``.
        parents: for each row the row it follows, -1 for what is filled already; ``None`` for a chain.
    """

    start: int
    count: int
    pages: Sequence[int]
    parents: Sequence[int] | None = None


@dataclass(frozen=True)
class Rows:
    """One pass.

    Attributes:
        tokens: int32 ``[rows]``.
        spans: whose counts add up to the rows, in their order.
        draft: read the weights' draft values instead of the exact ones (embedding rows stay exact).
        wanted: ascending rows whose logits are computed.
        draws: what is drawn from each of these, or empty.
        confidences: whether greedy draws tell how sure they are.
        taps: names of the taps that keep what passes them.
    """

    tokens: NDArray[np.int32]
    spans: Sequence[SpanRows]
    draft: bool = False
    wanted: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    draws: Sequence[Draw] = ()
    confidences: bool = True
    taps: tuple[str, ...] = ()


class Step(Protocol):
    """One pass over rows; the same bits for a row whatever other rows are in the pass."""

    def run(self, rows: Rows) -> None:
        """Compute a pass: keys and values go to the cache, results stay here until the next pass.

        Raises:
            ValueError: too many or no rows, a token id outside the vocabulary, spans that do not fit their pages, or
                a row whose parent does not stand before it.
        """
        ...

    def logits(self) -> NDArray[np.float32]:
        """The logits of the rows that the last pass wanted, ``[wanted, vocab]``; valid until the next pass."""
        ...

    def drawn(self) -> list[Drawn]:
        """Of each draw of the last pass."""
        ...

    def tapped(self, name: str) -> NDArray[np.float32]:
        """What passed a tap that the last pass asked for, ``[rows, width]``; valid until the next pass."""
        ...


class PartStep(Step, Protocol):
    """A step of which parts can be run, between which its buffers are read and written."""

    def run_part(self, rows: Rows, first: int, last: int) -> None:
        """Run only the program's operators from ``first`` up to ``last``, as :meth:`run` does all of them."""
        ...

    def buffer(self, name: str) -> NDArray[np.float32]:
        """A buffer of the program in place, float32 ``[max_tokens, width]``."""
        ...


def positions(span: SpanRows) -> NDArray[np.int32]:
    """Where the rows of a span stand in their sequence, int32 ``[count]``.

    Raises:
        ValueError: a row's parent does not stand before it.
    """
    if span.parents is None:
        return np.arange(span.start, span.start + span.count, dtype=np.int32)
    depths = np.zeros(span.count, np.int32)
    for row, parent in enumerate(span.parents):
        if not -1 <= parent < row:
            raise ValueError("a row's parent must stand before it")
        depths[row] = depths[parent] + 1 if parent >= 0 else 0
    return depths + np.int32(span.start)


def path(parents: Sequence[int], row: int) -> list[int]:
    """The rows from the root of a tree to ``row``, itself included."""
    rows = [row]
    while (row := parents[row]) >= 0:
        rows.append(row)
    return rows[::-1]


def chain(
    tokens: NDArray[np.integer[Any]],
    start: int = 0,
    *,
    draft: bool = False,
    logits: Literal["none", "last", "all"] = "none",
    parents: Sequence[int] | None = None,
) -> Rows:
    """A pass over one sequence that has the first pages of the cache to itself: for tests, calibration and benchmarks.

    Args:
        tokens: int ``[rows]``, at positions ``start``, ``start + 1``, ...
        start: slots that are filled already.
        draft: read the weights' draft values.
        logits: of which tokens.
        parents: of a tree.
    """
    count = len(tokens)
    pages = range(-(-(start + count) // PAGE))
    wanted = np.arange(count, dtype=np.int32)
    rows = {"none": wanted[:0], "last": wanted[-1:], "all": wanted}[logits]
    ids = np.ascontiguousarray(tokens, np.int32)
    return Rows(ids, (SpanRows(start, count, pages, parents),), draft=draft, wanted=rows)
