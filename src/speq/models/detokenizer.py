"""Token ids to text, piece by piece, for streaming.

A character may be spread over several tokens, and what a token decodes to may depend on the one before it (leading
spaces). So the newest tokens are always decoded together with the last ones that gave text, and a piece is released
once it does not end in the middle of a character. The pieces put together equal the text of all tokens decoded at
once. (One exception, where the pieces are the better text: decoders with byte fallback give up a whole run of bytes
once one of them is invalid.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """An incremental decoder of one sequence of tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """``decode`` turns a list of ids into text, with U+FFFD in place of incomplete characters."""
        self._decode = decode
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Take one more token; the text that is now certain, often empty."""
        self._pending.append(token)
        piece = self._new_text()
        return "" if piece.endswith(_INCOMPLETE) else self._release(piece)

    def flush(self) -> str:
        """The rest, with U+FFFD in place of a character that was never completed."""
        return self._release(self._new_text())

    def _new_text(self) -> str:
        return self._decode(self._context + self._pending)[len(self._decode(self._context)) :]

    def _release(self, piece: str) -> str:
        if piece:
            self._context, self._pending = self._pending, []
        return piece
