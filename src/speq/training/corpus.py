"""The text that a head is trained on, as rows of tokens: what the model writes itself, or what the user gives.

Rows are written in waves, each a file of its own in the working directory, so that an interruption loses one wave at
most. Every :data:`HELD_OUT`-th row is held out: no head is trained on it, and acceptance is measured there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.storage import Progress, replacing
from speq.errors import SpeqError
from speq.training.conversation import Turns
from speq.training.documents import Documents
from speq.training.target import Target
from speq.training.writing import Start, Written, answers_to, beginnings, write

HELD_OUT = 37
"""One row in so many is held out; coprime to the number of temperatures, so that each of them is among those rows."""

SHORTEST = 16
"""Tokens of a row, at least."""


@dataclass(frozen=True)
class Corpus:
    """Rows of text.

    Attributes:
        tokens: int32 ``[rows, length]``.
        answers: bool ``[rows, length]``, the tokens that a head should be good at.
    """

    tokens: NDArray[np.int32]
    answers: NDArray[np.bool_]

    @property
    def held_out(self) -> NDArray[np.intp]:
        """Numbers of the rows that are held out."""
        return np.arange(0, len(self.tokens), HELD_OUT)

    @property
    def training(self) -> NDArray[np.intp]:
        """Numbers of the rows to train on."""
        return np.setdiff1d(np.arange(len(self.tokens)), self.held_out)


def own_text(
    target: Callable[[], Target],
    turns: Turns,
    openings: Sequence[Sequence[int]],
    directory: Path,
    *,
    rows: int,
    length: int,
    at_once: int,
    seed: int,
    progress: Progress | None,
) -> Corpus:
    """Conversations that the model writes alone, or their rest if a part was written before.

    Args:
        target: gives the model, when there is something to write.
        turns, openings: see :mod:`speq.training.conversation`.
        directory: where waves are kept.
        rows, length: how much.
        at_once: rows of a wave.
        seed: of the draws.
        progress: called with counts of tokens.
    """

    def wave(first: int) -> list[Start]:
        return beginnings(turns, openings, min(at_once, rows - first), first, seed)

    return _waves(target, turns, directory, wave, rows, length, at_once, seed, progress)


def given_text(
    target: Callable[[], Target],
    turns: Callable[[], Turns],
    documents: Documents,
    end: int | None,
    directory: Path,
    *,
    tokens: int | None,
    length: int,
    at_once: int,
    seed: int,
    progress: Progress | None,
) -> Corpus:
    """The user's text, one after the other in rows, and the model's answers to the user's questions.

    Args:
        turns: gives the turns of the model, when there are questions.
        end: the id between texts, if the model has one.
        tokens: most tokens to use; None for all.
        target, directory, length, at_once, seed, progress: as for :func:`own_text`.

    Raises:
        SpeqError: there are too few tokens.
    """
    packed = _pack(documents.texts, end, tokens, length, shorten=not documents.prompts)
    parts = [packed] if packed is not None else []
    if documents.prompts:
        room = (
            len(documents.prompts) if tokens is None else max(1, tokens // length - sum(len(p.tokens) for p in parts))
        )
        asked = list(answers_to(documents.prompts[:room]))

        def wave(first: int) -> list[Start]:
            return asked[first : first + at_once]

        parts.append(_waves(target, turns(), directory, wave, len(asked), length, at_once, seed, progress))
    corpus = Corpus(np.concatenate([p.tokens for p in parts]), np.concatenate([p.answers for p in parts]))
    if len(corpus.training) < 1:
        raise SpeqError("one question is too little to train on: give more text")
    return corpus


def _waves(
    target: Callable[[], Target],
    turns: Turns,
    directory: Path,
    wave: Callable[[int], list[Start]],
    rows: int,
    length: int,
    at_once: int,
    seed: int,
    progress: Progress | None,
) -> Corpus:
    parts: list[Written] = []
    for number, first in enumerate(range(0, rows, at_once)):
        file = directory / f"text-{number:05d}.npz"
        if not file.exists():
            starts = wave(first)

            def report(position: int, done: int = first, count: int = len(starts)) -> None:
                if progress is not None:
                    progress("writing", done * length + count * (position + 1), rows * length)

            _save(file, write(target(), turns, starts, length, seed + number, report=report))
        with np.load(file) as stored:
            parts.append(Written(stored["tokens"], stored["answers"]))
    return Corpus(np.concatenate([p.tokens for p in parts]), np.concatenate([p.answers for p in parts]))


def _save(file: Path, written: Written) -> None:
    with replacing(file, file.with_suffix(".partial")) as out:
        np.savez(out, tokens=written.tokens, answers=written.answers)


def _pack(
    texts: Sequence[Sequence[int]], end: int | None, most: int | None, length: int, *, shorten: bool
) -> Corpus | None:
    """Texts one after the other, cut into rows of ``length`` tokens; for few tokens shorter ones if ``shorten``.

    Returns:
        The rows, or None when there is not even one.
    """
    separator = [] if end is None else [end]
    stream = np.fromiter(
        chain.from_iterable([*text, *([] if separator and text[-1:] == separator else separator)] for text in texts),
        np.int32,
    )
    if most is not None:
        stream = stream[:most]
    if shorten:
        length = min(length, len(stream) // 4)
        if length < SHORTEST:
            raise SpeqError(f"the text has {len(stream)} tokens; training a head takes at least {4 * SHORTEST}")
    rows = len(stream) // length
    if not rows:
        return None
    tokens = stream[: rows * length].reshape(rows, length)
    return Corpus(tokens, np.ones(tokens.shape, np.bool_))
