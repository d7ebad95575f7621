"""Stop strings in streamed text: the text ends before the first one, and no part of one is ever shown.

A stop string may begin in one token and end in another, so the end of the text that could still become one is held back
until it cannot. The result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """A filter for streamed text.

    Args:
        strings: non-empty stop strings; none at all passes everything through.

    Attributes:
        found: whether a stop string was met; text pushed after that is dropped.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take the next piece and return the text that is safe to show."""
        if self.found:
            return ""
        text = self._held + text
        ends = [(at + len(s), at) for s in self._strings if (at := text.find(s)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        safe = len(text) - self._possible_start(text)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """The text held back when nothing more comes: it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self._strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
