"""The trained first stage: a head that reads the model's hidden states and proposes a tree of tokens.

The tree is grown level by level. Of the nodes among the best so far those that have no successors yet are continued
together, as long as they are probable enough that a successor may pay (EAGLE-2's dynamic tree; cumulative probability
is confidence times that of the path). What is proposed comes most probable first, so any number of the first nodes is
the best tree of that size that the head knows of.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.decoding.drafters import Aside, Asked, Context, Drafter, Drawn, Proposing
from speq.decoding.race import by_chance
from speq.decoding.verify import Proposal
from speq.limits import BATCH_ROWS
from speq.runtime.batch import HeadSpan, Level
from speq.runtime.kv import KVHandle, KVPool
from speq.runtime.sampling import GREEDY, Likely, Sampling

DEPTH = 5
"""Tokens of the longest chain; heads are trained on chains of four."""
BEAM = 4
"""Nodes that are continued together."""

_LEAST = 0.02  # probability below which a node is not worth a row
_CONTINUED = 0.15  # probability below which a node is not worth a step of the head

States: TypeAlias = NDArray[np.float32]


Given: TypeAlias = tuple[States, list[Likely]]
"""What a step over a span gives: outputs of its rows, and what is likely after each wanted one, by the model's ids."""


class Head(Protocol):
    """What computes; :class:`speq.runtime.head.ExecutedHead` is one."""

    @property
    def taps(self) -> tuple[str, ...]: ...
    @property
    def kv(self) -> KVPool: ...
    def run(self, spans: Sequence[HeadSpan]) -> Sequence[Given]: ...


@dataclass(eq=False)
class _Node:
    """A token that could be proposed.

    Attributes:
        parent: index among the nodes, -1 for the text's last token.
        reached: probability that it and its path are right.
        depth: tokens of its path.
        state: the head's output that proposed it.
        row: in the steps of the head, once it is continued.
    """

    token: int
    parent: int
    confidence: float
    reached: float
    depth: int
    state: States
    row: int = -1


@dataclass(frozen=True)
class _Found:
    """What the head finds likely at ``position`` after ``token``, and its output there."""

    position: int
    token: int
    output: States
    likely: Likely


class HeadDrafter(Drafter):
    """Proposes what a head guesses.

    Args:
        head: may be shared among sequences of one model.
        nodes: most tokens to propose.
        tree: whether a token may have several successors; otherwise proposals are chains.
    """

    def __init__(self, head: Head, nodes: int = 15, *, tree: bool = True) -> None:
        self.taps = head.taps
        self._head, self._nodes, self._tree = head, nodes, tree
        self._kv: KVHandle | None = None
        self._tokens: list[int] = []  # that stand after what is in the head's cache
        self._states: list[States] = []  # at each of them
        self._exact: list[bool] = []  # whether the states are those of the exact level
        self._found: _Found | None = None

    def begin(self, tokens: Sequence[int]) -> int:
        self.close()
        self._head.kv.settle()
        self._kv = self._head.kv.open(tokens)
        # The last shared slot has read a token after those that are alike.
        self._head.kv.truncate(self._kv, max(self._kv.length - 1, 0))
        return self._kv.length

    def read(self, tokens: Sequence[int], states: States, start: int, level: Level) -> None:
        kv = self._opened
        self._cut(start)
        if kv.length + len(self._tokens) != start:
            raise ValueError(f"states from position {start} on, when those from {kv.length} on are needed")
        self._tokens += tokens
        self._states += list(states)
        self._exact += [level == "exact"] * len(tokens)
        while len(self._tokens) > BATCH_ROWS:
            span = self._entering(self._tokens[1 : BATCH_ROWS + 1])
            self._head.run([span])
            self._entered(span)

    def close(self) -> None:
        if self._kv is not None:
            self._head.kv.close(self._kv)
        self._kv = None
        self._tokens, self._states, self._exact, self._found = [], [], [], None

    def propose(self, context: Context) -> Proposing:
        limit = min(context.limit, self._nodes)
        if limit <= 0:
            return Proposal()
        self._cut(context.position - 1)
        if self._tokens:
            span = self._entering([*self._tokens[1:], context.last], context.sampling)
            outputs, (likely,) = yield from self._run(span)
            self._entered(span)
            self._found = _Found(context.position, context.last, outputs[-1], likely)
        found = self._found
        if found is None or (found.position, found.token) != (context.position, context.last):
            raise ValueError(f"the states before position {context.position} were not read")
        nodes = yield from self._grown(context, found.output, found.likely, limit)
        return self._best(nodes, limit)

    @property
    def _opened(self) -> KVHandle:
        if self._kv is None:
            raise ValueError("begin() comes first")
        return self._kv

    def _cut(self, length: int) -> None:
        """Forget what stands at position ``length`` and after it."""
        kv = self._opened
        if length < kv.length:
            self._head.kv.truncate(kv, length)
        for kept in (self._tokens, self._states, self._exact):
            del kept[max(length - kv.length, 0) :]

    def _run(self, span: HeadSpan) -> Generator[Asked, Drawn, Given]:
        """A step over a span, together with those of others."""
        ask = Aside(self._head, self._head.run, span, len(span.tokens), BATCH_ROWS)
        yield ask
        assert ask.answer is not None
        return ask.answer

    def _entering(self, following: Sequence[int], sampling: Sampling | None = None) -> HeadSpan:
        """The first states that wait, with the tokens that follow them; with a sampling, the last of these proposes."""
        count = len(following)
        return HeadSpan(
            self._opened,
            following,
            np.stack(self._states[:count]),
            of_model=True,
            wanted=(count - 1,) if sampling else (),
            sampling=sampling or GREEDY,
        )

    def _entered(self, span: HeadSpan) -> None:
        """Note that a step has brought the first states that waited into the head's cache."""
        count = len(span.tokens)
        exact = self._exact[:count].index(False) if False in self._exact[:count] else count
        self._head.kv.extend(span.kv, self._tokens[:exact], exact=True)
        self._head.kv.extend(span.kv, self._tokens[exact:count], exact=False)
        for kept in (self._tokens, self._states, self._exact):
            del kept[:count]

    def _grown(
        self, context: Context, last: States, likely: Likely, limit: int
    ) -> Generator[Asked, Drawn, list[_Node]]:
        """All nodes that were found, parents first."""
        nodes: list[_Node] = []
        self._add(nodes, context, -1, last, likely)
        continued: list[_Node] = []  # those with a row in the steps of the head, in the order of rows
        for depth in range(1, DEPTH):
            best = sorted(nodes, key=lambda node: -node.reached)[:limit]
            if context.worth:  # what is not worth a row leads to nothing that is
                best = best[: context.worth(self._best(nodes, limit))]
            chosen = [
                node
                for node in best
                if node.row < 0
                and node.depth <= depth
                and node.reached >= _CONTINUED
                and node.token not in context.ends
            ][:BEAM]
            if not chosen:
                break
            for node in chosen:
                node.row = len(continued)
                continued.append(node)
            first = len(continued) - len(chosen)
            outputs, found = yield from self._run(
                HeadSpan(
                    self._opened,
                    [node.token for node in continued],
                    np.stack([node.state for node in continued]),
                    parents=[nodes[node.parent].row if node.parent >= 0 else -1 for node in continued],
                    wanted=range(first, len(continued)),
                    sampling=context.sampling,
                )
            )
            for node, output, each in zip(chosen, outputs[first:], found, strict=True):
                self._add(nodes, context, nodes.index(node), output, each)
        return nodes

    def _add(self, nodes: list[_Node], context: Context, parent: int, state: States, likely: Likely) -> None:
        """Add what may follow a node."""
        reached, depth = (nodes[parent].reached, nodes[parent].depth) if parent >= 0 else (1.0, 0)
        best = by_chance(dict(likely), context.sampling, context.position + depth)
        for token, weight in best if self._tree else best[:1]:
            if reached * weight < _LEAST:
                break
            nodes.append(_Node(token, parent, weight, reached * weight, depth + 1, state))

    @staticmethod
    def _best(nodes: list[_Node], limit: int) -> Proposal:
        """The best nodes, the most probable first; a node is never more probable than its parent."""
        order = sorted(range(len(nodes)), key=lambda index: (-nodes[index].reached, index))[:limit]
        place = {index: at for at, index in enumerate(order)} | {-1: -1}
        return Proposal.of_tree(
            [nodes[index].token for index in order],
            [nodes[index].confidence for index in order],
            [place[nodes[index].parent] for index in order],
        )
