"""Stop strings in streamed text: the text ends before the first one, and no part of one is ever shown.

Stop strings are looked for in the text with its special tokens written out (``<|im_end|>``), although these are not
shown: a stop string that is one special token ends the text where that token comes, and one that is partly special
(``<|im_end|>`` and a line feed) where the last of it comes. A stop string may begin in one token and end in another, so
the end of the text that could still become one is held back until it cannot. The result does not depend on how the text
was cut into pieces.
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
        self._hidden: set[int] = set()  # where ``_held`` has letters that are not to be shown
        self.found = False

    def push(self, text: str, *, shown: bool = True) -> str:
        """Take the next piece and return the text that is safe to show.

        Args:
            text: the piece.
            shown: False for the name of a special token, which can only be part of a stop string.
        """
        if self.found:
            return ""
        if not shown:
            self._hidden.update(range(len(self._held), len(self._held) + len(text)))
        self._held += text
        ends = [(at + len(s), at) for s in self._strings if (at := self._held.find(s)) >= 0]
        if ends:
            self.found = True
            safe = self._release(min(ends)[1])
            self._held = ""
            return safe
        return self._release(len(self._held) - self._possible_start(self._held))

    def flush(self) -> str:
        """The text held back when nothing more comes: it did not become a stop string."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        """Let go of the first letters that are held; those of them that are shown."""
        text, self._held = self._held[:length], self._held[length:]
        if not self._hidden:
            return text
        shown = "".join(letter for at, letter in enumerate(text) if at not in self._hidden)
        self._hidden = {at - length for at in self._hidden if at >= length}
        return shown

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self._strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
