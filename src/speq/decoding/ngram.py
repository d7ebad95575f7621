"""The free first stage: what stood in the text before, and what the model is known to put after a token.

A look-up of the end of the text goes first; where it finds nothing, or beside what it finds, the table of successors
tells alternatives. The tree is grown by best first: of all tokens that could be added, the one that is most probably
right comes next, together with its path. So any number of the first nodes is the best tree of that size that these
two know of, and whoever knows what rows cost can cut it anywhere.

A sampled draw is a race that noise decides, a pure function of seed, position and token. So the noise of the tokens
that could follow is known in advance, and they are ordered by how well they run rather than by probability alone.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal, TypeAlias

from speq.decoding.drafters import Context, Drafter, Drawn, Proposing
from speq.decoding.lookup import Lookup, Match
from speq.decoding.race import by_chance
from speq.decoding.successors import SuccessorTable
from speq.decoding.verify import Proposal, Verification

LIKELY = 6
"""Of so many of the most probable tokens the table learns from each draw."""

_LEAST = 0.01  # probability below which a node is not worth a row

Source: TypeAlias = Literal["lookup", "table"]


@dataclass(frozen=True)
class _Node:
    """A token that could be proposed, or the last one of the text."""

    token: int
    before: int | None
    parent: int  # index in the proposal, -1 for the text
    confidence: float
    reached: float  # probability that it and its path are right
    path: tuple[int, ...]
    source: Source = "table"
    match: Match | None = None  # what the token continues
    ahead: int = 0  # tokens of the match's continuation on the path


class NgramDrafter(Drafter):
    """Proposes from look-ups and a table of successors, in the order of how probably tokens are right.

    Args:
        table: may be shared among sequences of one model.
        nodes: most tokens to propose.
        tree: whether a token may have several successors; otherwise proposals are chains.

    Attributes:
        sources: where each token of the last proposal comes from.
    """

    likely = LIKELY

    def __init__(self, table: SuccessorTable, nodes: int = 15, *, tree: bool = True) -> None:
        self._table, self._nodes, self._tree = table, nodes, tree
        self._lookup = Lookup()
        self._rows: list[_Node] = []  # of the pass over the last proposal: the end of the text, then what is proposed

    @property
    def sources(self) -> list[Source]:
        return [node.source for node in self._rows[1:]]

    def propose(self, context: Context) -> Proposing:
        yield from ()
        self._lookup.extend(context.tokens)
        nodes = min(context.limit, self._nodes)
        tokens: list[int] = []
        confidences: list[float] = []
        parents: list[int] = []
        before, last = [None, *context.tokens[-2:], *context.tentative[-2:]][-2:]
        assert last is not None
        root = _Node(last, before, -1, 1.0, 1.0, ())
        self._rows = [root]
        if nodes <= 0:
            return Proposal()
        heap: list[tuple[float, int, _Node]] = []
        count = 0
        grown: _Node | None = root
        while grown is not None:
            for node in self._children(context, grown, len(tokens) - 1):
                heapq.heappush(heap, (-node.reached, count, node))
                count += 1
            grown = None
            while heap and len(tokens) < nodes and grown is None:
                node = heapq.heappop(heap)[2]
                tokens.append(node.token)
                confidences.append(node.confidence)
                parents.append(node.parent)
                self._rows.append(node)
                grown = node
        return Proposal.of_tree(tokens, confidences, parents)

    def learn(self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn) -> None:
        """Fill the table from what was drawn, and note how the look-up did."""
        on_path = set(checked.path)
        # What follows a dropped token is worth knowing, too, but less than what follows one that stays.
        for row in sorted(range(len(drawn)), key=lambda row: (row in on_path, row)):
            node = self._rows[row]
            self._table.learn(node.before, node.token, drawn[row].likely)
        for row, node in enumerate(self._rows[: len(drawn)]):
            if node.match and node.parent + 1 in on_path:
                self._lookup.record.observe(node.match.length + node.ahead - 1, row in on_path)

    def _children(self, context: Context, node: _Node, index: int) -> list[_Node]:
        """What could follow a node, which stands at ``index`` of the proposal."""
        if node.path and node.token in context.ends:
            return []
        match, ahead = node.match, node.ahead
        token = self._lookup.following(match, ahead) if match else None
        if token is None:
            match, ahead = self._lookup.match([*context.tentative, *node.path]), 0
            token = self._lookup.following(match, 0) if match else None
        weights = dict(self._table.successors(node.before, node.token))
        if match is not None and token is not None:
            sure = self._lookup.record.confidence(match.length + ahead)
            rest = (1 - sure) / max(1 - weights.get(token, 0.0), 1e-6)
            weights = {each: min(weight * rest, 1 - sure) for each, weight in weights.items() if each != token}
            weights[token] = sure
        best = by_chance(weights, context.sampling, context.position + len(node.path))
        children = []
        for each, weight in best if self._tree else best[:1]:
            if node.reached * weight < _LEAST:
                break
            looked_up = each == token
            children.append(
                _Node(
                    each,
                    node.token,
                    index,
                    weight,
                    node.reached * weight,
                    (*node.path, each),
                    "lookup" if looked_up else "table",
                    match if looked_up else None,
                    ahead + 1 if looked_up else 0,
                )
            )
        return children
