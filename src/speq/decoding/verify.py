"""Verification: what a pass drew after each proposed token decides how much of the proposal stays.

The draw after a row is, by induction, the token of plain decoding at that pass's level as long as all tokens on the
path to the row equalled theirs. So the longest path that the draws follow is kept, and the draw at its end comes for
free. The same function serves chains and trees, at every level; an empty proposal makes it an ordinary decoding step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Proposal:
    """Tokens that may come next, as a chain or as a tree.

    Attributes:
        tokens: proposed ids.
        confidences: for each, how sure the drafter was, in 0 .. 1.
        parents: for each the index of the token it follows, -1 for the sequence's last; ``None`` for a chain.
    """

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    parents: list[int] | None = None

    def cumulative(self) -> list[float]:
        """For each token the probability, by the confidences, that it and all on the path to it are right."""
        reached: list[float] = []
        for index, confidence in enumerate(self.confidences):
            parent = index - 1 if self.parents is None else self.parents[index]
            reached.append(confidence * (reached[parent] if parent >= 0 else 1.0))
        return reached

    def main_line(self) -> list[int]:
        """The indices of the first child of the sequence's last token, of its first child, and so on."""
        if self.parents is None:
            return list(range(len(self.tokens)))
        line: list[int] = []
        for index, parent in enumerate(self.parents):
            if parent == (line[-1] if line else -1):
                line.append(index)
        return line

    @staticmethod
    def of_tree(tokens: list[int], confidences: list[float], parents: list[int]) -> Proposal:
        """A tree, or the chain that it is."""
        is_chain = parents == list(range(-1, len(tokens) - 1))
        return Proposal(tokens, confidences, None if is_chain else parents)

    def beginning(self, count: int) -> Proposal:
        """The first so many tokens; fewer if there are fewer."""
        if count >= len(self.tokens):
            return self
        count = max(count, 0)
        tokens, confidences = self.tokens[:count], self.confidences[:count]
        if self.parents is None:
            return Proposal(tokens, confidences)
        return Proposal.of_tree(tokens, confidences, self.parents[:count])

    def rows(self) -> list[int] | None:
        """Parents of the rows of a pass over the sequence's last token and the proposal; ``None`` for a chain."""
        return None if self.parents is None else [-1, *(parent + 1 for parent in self.parents)]


@dataclass(frozen=True)
class Verification:
    """What stays of a proposal.

    Attributes:
        path: rows of the pass that stay: 0, the sequence's last token, then those of the accepted tokens.
        tokens: the accepted tokens and the one drawn after them.
    """

    path: list[int]
    tokens: list[int]

    @property
    def accepted(self) -> int:
        """How many proposed tokens were right."""
        return len(self.tokens) - 1


def verify(drawn: Sequence[int], proposal: Proposal) -> Verification:
    """Compare a proposal with what a pass over it drew.

    Args:
        drawn: the token drawn after each row: after the sequence's last token, then after each proposed one. Draws
            after rows that are not reached do not matter.
    """
    children = _children(proposal)
    path, tokens = [0], [drawn[0]]
    while (row := children.get((path[-1], tokens[-1]))) is not None:
        path.append(row)
        tokens.append(drawn[row])
    return Verification(path, tokens)


def followed(proposal: Proposal, tokens: Sequence[int]) -> list[int]:
    """The rows of a pass over a proposal that known tokens follow from the sequence's last token, row 0, on."""
    children, path = _children(proposal), [0]
    for token in tokens:
        if (row := children.get((path[-1], token))) is None:
            break
        path.append(row)
    return path


def _children(proposal: Proposal) -> dict[tuple[int, int], int]:
    """By row and token, the first row that proposes the token there."""
    children: dict[tuple[int, int], int] = {}
    for index, token in enumerate(proposal.tokens):
        parent = index if proposal.parents is None else proposal.parents[index] + 1
        children.setdefault((parent, token), index + 1)
    return children
