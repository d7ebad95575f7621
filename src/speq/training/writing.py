"""Text that the model writes itself: many conversations side by side, one token of each at a time.

All rows stand at the same position, so a pass is one matrix product per weight, and on a GPU the pass of a position is
recorded once and replayed (CUDA graphs). Tokens that are given (a question, the tokens between turns) take the place
of drawn ones, so rows never wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.training.conversation import ANSWER, Turns
from speq.training.target import Cache, Target, Tensor

USER_TEMPERATURE = 1.0
ANSWER_TEMPERATURES = (0.0, 0.0, 0.7, 1.0)
"""Of rows in turn: half of the answers are the likeliest ones, as a head meets them most."""

MIN_P = 0.03
"""Tokens less likely than this fraction of the likeliest are never drawn: they lead small models astray."""

LONGEST_TURN = (96, 400)
"""Tokens of a user's turn and of an answer; then it is ended, since a model that repeats itself teaches nothing new."""

_SPAN = 128
"""Positions of the cache are looked at in multiples of this: one recording serves so many positions."""


@dataclass(frozen=True)
class Start:
    """How a row begins: given tokens, and who goes on from there."""

    tokens: tuple[int, ...]
    speaker: int
    temperature: float


@dataclass(frozen=True)
class Written:
    """``tokens`` int32 ``[rows, length]``; ``answers``, bool, says which of them the model wrote as answers."""

    tokens: NDArray[np.int32]
    answers: NDArray[np.bool_]


def write(
    target: Target,
    turns: Turns,
    starts: Sequence[Start],
    length: int,
    seed: int,
    *,
    cache: Cache | None = None,
    report: Callable[[int], None] | None = None,
) -> Written:
    """Write rows of ``length`` tokens, conversation after conversation.

    The text is a function of the arguments and of the machine: another kind of processor rounds differently.

    Args:
        target: the model.
        turns: its turns.
        starts: one for each row, with at least one token; longer ones are cut.
        length: tokens of a row.
        seed: of the draws.
        cache: takes the keys and values of all tokens but the last, if the caller wants them.
        report: called with the position that is done.

    Raises:
        SpeqError: activations of the model are not finite.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        kept = Cache(target.config, len(starts), length, target.embedding) if cache is None else cache
        writer = _Writer(target, turns, starts, length, kept)
        advance = _recorded(writer) if target.device.type == "cuda" else writer.advance
        for position in range(length - 1):
            advance(min(-(-(position + 1) // _SPAN) * _SPAN, length))
            if report is not None and (position % 16 == 0 or position == length - 2):
                report(position + 1)
    if not writer.finite:
        raise SpeqError("the model cannot write text: its activations are not finite")
    return Written(writer.tokens.cpu().numpy().astype(np.int32), writer.answers.cpu().numpy())


class _Writer:
    """The state of all rows, in tensors that passes change in place."""

    def __init__(self, target: Target, turns: Turns, starts: Sequence[Start], length: int, cache: Cache) -> None:
        def tensor(values: object) -> Tensor:
            return torch.tensor(values, device=target.device)

        self._target = target
        rows = len(starts)
        self.tokens = torch.full((rows, length), -1, dtype=torch.long, device=target.device)
        for row, start in enumerate(starts):
            given = start.tokens[:length]
            self.tokens[row, : len(given)] = tensor(given)
        self.answers = torch.zeros((rows, length), dtype=torch.bool, device=target.device)
        self.finite = tensor(True)
        self._position = tensor(0)
        self._speaker = tensor([start.speaker for start in starts])
        self._closing = torch.full((rows,), -1, device=target.device)  # next of the closing tokens, -1 while speaking
        self._said = torch.zeros(rows, dtype=torch.long, device=target.device)
        self._temperature = tensor([start.temperature for start in starts])
        width = max(map(len, turns.closing))
        self._pieces = tensor([[*piece, *[0] * (width - len(piece))] for piece in turns.closing])
        self._lengths = tensor([len(piece) for piece in turns.closing])
        self._after = tensor(turns.after)
        self._longest = tensor(LONGEST_TURN)
        self._ends = torch.zeros((2, target.config.vocab_size), dtype=torch.bool, device=target.device)
        for who in range(2):
            self._ends[who, [turns.closing[who][0], *(end for end in turns.ends if end < self._ends.shape[1])]] = True
        self._cache = cache

    def advance(self, span: int) -> None:
        """One token more of every row."""
        at = self._position
        rows = len(self.tokens)
        read = self.tokens.index_select(1, at[None])[:, 0]
        final, _ = self._target.step("exact", read, at.expand(rows), self._cache, span)
        self.finite.logical_and_(torch.isfinite(final).all())
        drawn = self._draw(F.linear(final, self._target.head("exact")))
        given = self.tokens.index_select(1, at[None] + 1)[:, 0]
        is_given = given >= 0

        speaking = ~is_given & (self._closing < 0)
        over = speaking & (self._ends[self._speaker, drawn] | (self._said + 1 >= self._longest[self._speaker]))
        index = torch.where(over, 0, self._closing)
        closing = ~is_given & (index >= 0)
        piece = self._pieces[self._speaker, index.clamp(min=0)]
        following = torch.where(is_given, given, torch.where(closing, piece, drawn))
        self.tokens.index_copy_(1, at[None] + 1, following[:, None])
        # The token that ends an answer is the model's own word, those that open the next turn are not.
        own = (speaking & (self._speaker == ANSWER))[:, None]
        self.answers.index_copy_(1, at[None] + 1, own)

        closed = closing & (index + 1 >= self._lengths[self._speaker])
        self._said.copy_(torch.where(closing, 0, self._said + speaking))
        self._closing.copy_(torch.where(closed, -1, torch.where(closing, index + 1, self._closing)))
        self._speaker.copy_(torch.where(closed, self._after[self._speaker], self._speaker))
        self._position.add_(1)

    def _draw(self, logits: Tensor) -> Tensor:
        answering = self._speaker == ANSWER
        temperature = torch.where(answering, self._temperature, USER_TEMPERATURE)[:, None]
        scaled = logits.float() / temperature.clamp(min=1e-6)
        # The likeliest of p / e with e exponentially distributed is a draw from p.
        noise = torch.empty_like(scaled).exponential_().clamp_(min=1e-20).log_()
        allowed = scaled >= scaled.amax(-1, keepdim=True) + float(np.log(MIN_P))
        drawn = torch.where(allowed, scaled - noise, -torch.inf).argmax(-1)
        return torch.where(temperature[:, 0] > 0, drawn, logits.argmax(-1))


def _recorded(writer: _Writer) -> Callable[[int], None]:
    """``writer.advance`` for a GPU: recorded at the first position of a span, replayed at the others."""
    graphs: dict[int, Any] = {}
    pool = torch.cuda.graph_pool_handle()
    warm = iter(range(3))  # libraries set themselves up in the first passes, which cannot be recorded

    def advance(span: int) -> None:
        if next(warm, None) is not None:
            writer.advance(span)
            return
        if span not in graphs:
            torch.cuda.synchronize()
            graphs[span] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[span], pool=pool):
                writer.advance(span)
        graphs[span].replay()

    return advance


def beginnings(turns: Turns, openings: Sequence[Sequence[int]], rows: int, first_row: int, seed: int) -> list[Start]:
    """Beginnings of conversations that the model is to write alone; ``openings`` are the words every other begins with.

    Args:
        first_row: how many rows came before; row i is the same however rows are grouped.
    """
    made = []
    for row in range(first_row, first_row + rows):
        rng = np.random.default_rng([seed, row])
        words = tuple(openings[int(rng.integers(len(openings)))]) if openings and rng.random() < 0.5 else ()
        temperature = ANSWER_TEMPERATURES[row % len(ANSWER_TEMPERATURES)]
        made.append(Start((*turns.opening, *words), turns.first, temperature))
    return made


def answers_to(prompts: Sequence[Sequence[int]]) -> Iterator[Start]:
    """Beginnings with a question that the model is to answer."""
    for row, prompt in enumerate(prompts):
        yield Start(tuple(prompt), ANSWER, ANSWER_TEMPERATURES[row % len(ANSWER_TEMPERATURES)])
