"""How often a proposed token turns out right, as a function of the confidence it came with.

Confidences are sorted into bins and each bin counts its own acceptances, starting from the belief that a confidence is
a probability and forgetting slowly. So an over- or under-confident draft, or another sampling temperature, is learnt
within a few hundred tokens and needs no threshold to tune.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from speq.decoding.verify import Proposal, followed

_EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)
_BELIEFS = (0.15, 0.3, 0.45, 0.6, 0.72, 0.83, 0.9, 0.94, 0.97, 0.98)
DRAFT_BELIEFS = (0.2, 0.35, 0.6, 0.72, 0.85, 0.92, 0.95, 0.97, 0.98, 0.99)
"""Of the draft level, which knows the tokens that the exact level is about to draw better than it is sure of them."""
_PRIOR_WEIGHT = 2.5  # how many observations the first belief is worth
_KEEP = 0.995  # weight of older observations of a bin at each new one


class Acceptance:
    """Estimated probabilities that proposed tokens are right, given that all before them were.

    Args:
        beliefs: what is believed of each bin before anything was seen.
    """

    def __init__(self, beliefs: Sequence[float] = _BELIEFS) -> None:
        self._right = [_PRIOR_WEIGHT * belief for belief in beliefs]
        self._seen = [_PRIOR_WEIGHT] * len(beliefs)
        self._mean_right, self._mean_seen = 0.8 * _PRIOR_WEIGHT, _PRIOR_WEIGHT

    @property
    def mean(self) -> float:
        """Acceptance of a token whose confidence is not known yet."""
        return self._mean_right / self._mean_seen

    def probability(self, confidence: float) -> float:
        """Acceptance of a token drafted with ``confidence``."""
        at = bisect_right(_EDGES, confidence)
        return self._right[at] / self._seen[at]

    def observe(self, confidences: Sequence[float], accepted: int) -> None:
        """Learn from a verified draft; tokens after the first wrong one say nothing."""
        for i, confidence in enumerate(confidences[: accepted + 1]):
            self._note(confidence, i < accepted)

    def observe_tree(self, proposal: Proposal, tokens: Sequence[int]) -> int:
        """Learn from a tree, of which perhaps only a beginning was checked, and the tokens that were right: of those
        that follow a right one, which were. Returns how many of the tree's tokens were.
        """
        path = followed(proposal, tokens)
        right, known = set(path), set(path[: len(tokens)])  # nobody knows what follows the last token
        for row, parent in enumerate((proposal.rows() or range(-1, len(proposal.tokens)))[1:], 1):
            if parent in known:
                self._note(proposal.confidences[row - 1], row in right)
        return len(path) - 1

    def reached(self, proposal: Proposal) -> list[float]:
        """For each token the probability that it and all on the path to it are right."""
        return replace(proposal, confidences=[self.probability(each) for each in proposal.confidences]).cumulative()

    def _note(self, confidence: float, right: bool) -> None:
        at = bisect_right(_EDGES, confidence)
        self._right[at] = self._right[at] * _KEEP + right
        self._seen[at] = self._seen[at] * _KEEP + 1
        self._mean_right = self._mean_right * _KEEP + right
        self._mean_seen = self._mean_seen * _KEEP + 1
