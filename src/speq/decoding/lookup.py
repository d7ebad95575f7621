"""Look-up: what stood in the text before is likely to follow again.

An index of the text's n-grams, updated as tokens come, finds where the end of the text occurred before; what followed
there is proposed. Only tokens that are certain are indexed, while those that are merely drafted take part in matching,
so nothing has to be taken back when a draft is dropped.

Occurrences of an n-gram hang together as a list, the latest first, of which a bounded number is looked at; long n-grams
are asked first. So a token costs the same to add and to look up however long the text is, and the longest match wins,
of equally long ones the latest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GRAMS = (8, 4, 2)
"""Lengths of the n-grams that are indexed; the last one is the shortest match."""

LONGEST_MATCH = 32
"""Tokens beyond which a match is not followed back."""

_CANDIDATES = 16  # occurrences of an n-gram that are looked at
_CAPACITY = 1 << 16  # tokens that are indexed; the older half is forgotten when there are more
_BUCKETS = (2, 3, 4, 6, 9, 17)  # shortest matches of the classes whose record is kept
_BELIEFS = (0.35, 0.5, 0.65, 0.8, 0.9, 0.95)  # what is believed of each before anything was seen
_PRIOR_WEIGHT = 4.0  # how many observations that is worth
_KEEP = 0.98  # weight of older observations of a class at each new one


@dataclass(frozen=True)
class Match:
    """Where the end of the text occurred before.

    Attributes:
        end: index of the token that followed there.
        length: tokens that agree, up to :data:`LONGEST_MATCH`.
    """

    end: int
    length: int


class Record:
    """How often a token that followed a match was right, by the length of the match."""

    def __init__(self) -> None:
        self._right = [_PRIOR_WEIGHT * belief for belief in _BELIEFS]
        self._seen = [_PRIOR_WEIGHT] * len(_BELIEFS)

    def confidence(self, length: int) -> float:
        """The probability that what follows a match of ``length`` tokens comes again."""
        at = self._at(length)
        return self._right[at] / self._seen[at]

    def observe(self, length: int, right: bool) -> None:
        """Note whether what followed a match of ``length`` tokens came again."""
        at = self._at(length)
        self._right[at] = self._right[at] * _KEEP + right
        self._seen[at] = self._seen[at] * _KEEP + 1

    @staticmethod
    def _at(length: int) -> int:
        return max(at for at, least in enumerate(_BUCKETS) if at == 0 or length >= least)


class Lookup:
    """The n-grams of one text.

    Args:
        capacity: most tokens to index; of a longer text, the older half of these is forgotten.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        if capacity < 2:
            raise ValueError("an index needs room for two tokens")
        self.record = Record()
        self._capacity = capacity
        self._tokens: list[int] = []
        self._offset = 0  # tokens of the text before the first that is kept
        self._latest: list[dict[tuple[int, ...], int]] = [{} for _ in GRAMS]
        self._earlier: list[list[int]] = [[] for _ in GRAMS]  # for each end of an n-gram the end before, or -1

    def extend(self, text: Sequence[int]) -> None:
        """Index what is new of a text, of which all that was given before is the beginning."""
        for index in range(self._offset + len(self._tokens), len(text)):
            self._add(text[index])
            if len(self._tokens) > self._capacity:
                self._forget()

    def match(self, tentative: Sequence[int] = ()) -> Match | None:
        """The longest match of the end of the indexed text and ``tentative`` tokens after it with what stood before."""
        tokens, count = self._tokens, len(self._tokens)
        recent = [*tokens[max(0, count - LONGEST_MATCH) :], *tentative][-LONGEST_MATCH:]
        for size, latest, earlier in zip(GRAMS, self._latest, self._earlier, strict=True):
            if len(recent) < size:
                continue
            end = latest.get(tuple(recent[-size:]), -1)
            best: Match | None = None
            for _ in range(_CANDIDATES):
                if end < 0:
                    break
                length = size
                while length < len(recent) and length < end and tokens[end - length - 1] == recent[-length - 1]:
                    length += 1
                # Nothing follows the end of the text itself.
                if end < count and (best is None or length > best.length):
                    best = Match(end, length)
                end = earlier[end]
            if best:
                return best
        return None

    def following(self, match: Match, ahead: int) -> int | None:
        """The token that stood ``ahead`` tokens after the one that followed a match; None beyond the text."""
        at = match.end + ahead
        return self._tokens[at] if at < len(self._tokens) else None

    def _add(self, token: int) -> None:
        self._tokens.append(token)
        count = len(self._tokens)
        for size, latest, earlier in zip(GRAMS, self._latest, self._earlier, strict=True):
            if not earlier:
                earlier.append(-1)  # no n-gram ends before the first token
            if count < size:
                earlier.append(-1)
                continue
            gram = tuple(self._tokens[-size:])
            earlier.append(latest.get(gram, -1))
            latest[gram] = count

    def _forget(self) -> None:
        kept = self._tokens[-(self._capacity // 2) :]
        self._offset += len(self._tokens) - len(kept)
        self._tokens = []
        self._latest = [{} for _ in GRAMS]
        self._earlier = [[] for _ in GRAMS]
        for token in kept:
            self._add(token)
