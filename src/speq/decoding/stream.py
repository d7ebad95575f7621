"""A generation as the user sees it: pieces of text with their token ids, up to an end token, stop string or limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from speq.decoding.stats import Statistics
from speq.decoding.stop import StopStrings


class Detokenizer(Protocol):
    """Turns token ids into text one by one, without ever giving half a character; special tokens have a name only."""

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...
    def special(self, token: int) -> str: ...


@dataclass(frozen=True)
class Piece:
    """What one pass added: its token ids, and the text that became certain (often less than theirs, or empty)."""

    text: str
    token_ids: list[int]


def stream_pieces(
    passes: Iterator[list[int]],
    *,
    stats: Statistics,
    silent: frozenset[int],
    detokenizer: Detokenizer | None,
    stop: StopStrings,
) -> Iterator[Piece]:
    """Turn the tokens of each pass into a piece.

    Args:
        passes: from :func:`speq.decoding.generate.generate_tokens`, which also fills ``stats``.
        silent: token ids without text: those that end one.
        detokenizer: ``None`` gives pieces without text.
        stop: stop strings, which may contain special tokens; the token that completes one is the last of the
            generation.
    """
    count = 0
    for tokens in passes:
        text = ""
        for shown, token in enumerate(tokens, 1):
            if detokenizer and (name := detokenizer.special(token)):
                text += stop.push(name, shown=False)
            elif detokenizer and token not in silent:
                text += stop.push(detokenizer.push(token))
            if stop.found:
                stats.new_tokens = count + shown
                stats.finish_reason = "stop"
                yield Piece(text, tokens[:shown])
                return
        count += len(tokens)
        if detokenizer and stats.finished and count == stats.new_tokens:
            text += stop.push(detokenizer.flush()) + stop.flush()
        yield Piece(text, tokens)
