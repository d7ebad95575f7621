"""How the next token is chosen, and the draw itself.

The draw for position p is a pure function of (logits, seed, p): the noise comes from a counter-based generator, so a
draft pass and a verify pass meet the same noise and a drafted token is right exactly when it equals what plain
decoding would have drawn. The filters follow the field's usual order: temperature, then top-k, then top-p of what is
left, then min-p. Each is a threshold, and tokens that tie with the last one kept stay. The definition is
:mod:`speq.runtime.sampling_reference`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from speq import _native
from speq.errors import SpeqError
from speq.graph.step import Draw, Drawn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """Sampling options; the default is greedy decoding.

    Attributes:
        temperature: divides the logits; 0 chooses the largest logit (greedy).
        top_k: keep the k largest logits; 0 keeps all.
        top_p: keep the fewest tokens that together hold this share of the probability; 1 keeps all.
        min_p: keep tokens with at least this fraction of the largest probability; 0 keeps all.
        seed: 0 .. 2**64 - 1; ``None`` takes a fresh one, which the statistics report. Unused when greedy.

    Raises:
        SpeqError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.001 <= self.temperature < math.inf:
            raise SpeqError(f"temperature {self.temperature} is out of range: use 0 (greedy) or at least 0.001")
        if self.top_k < 0:
            raise SpeqError(f"top-k {self.top_k} is out of range: use 0 (off) or a positive count")
        if not 0 < self.top_p <= 1:
            raise SpeqError(f"top-p {self.top_p} is out of range: use a share above 0 and up to 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise SpeqError(f"min-p {self.min_p} is out of range: use a fraction between 0 (off) and 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise SpeqError(f"seed {self.seed} is out of range: use an integer between 0 and 2**64 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def seeded(self) -> Sampling:
        """The same options with a seed that is set; greedy options stay as they are."""
        if self.greedy or self.seed is not None:
            return self
        return replace(self, seed=secrets.randbits(32))

    def draw(self, position: int, likely: int = 0) -> Draw:
        """The draw of the token for ``position``, which tells of so many likely ones; a seed unless greedy."""
        return Draw(self.temperature, self.top_k, self.top_p, self.min_p, self.seed or 0, position, likely)

    def noise(self, tokens: Sequence[int], position: int) -> list[float]:
        """What tokens bring into the race for ``position``, where the smallest over its probability wins: exponential
        variates. Whoever guesses the probabilities can guess the draw with them. The seed must be set.
        """
        assert self.seed is not None
        return _native.noise(list(tokens), self.seed, position)


GREEDY = Sampling()


Likely: TypeAlias = Sequence[tuple[int, float]]
"""Tokens with their probabilities, the most probable first."""


class Choice(NamedTuple):
    """A drawn token and how sure the draw was, in 0..1: a hint for the draft length, of no effect on the tokens.

    Greedy: the token's softmax probability. Sampled: its share of the race against the runner-up.

    Attributes:
        likely: as many of the most probable tokens as were asked for, or as there are, after temperature and filters;
            of equally probable ones the lower id comes first.
    """

    token: int
    confidence: float
    likely: Likely = ()


def choose(
    logits: NDArray[np.float32], sampling: Sampling, position: int, *, likely: int = 0, with_confidence: bool = True
) -> Choice:
    """Draw the token for ``position`` from its float32 logits ``[vocab]``.

    Args:
        logits: contiguous float32 ``[vocab]``.
        sampling: options; the seed must be set unless greedy (see :meth:`Sampling.seeded`).
        position: absolute index in the sequence of the token to draw.
        likely: of how many of the most probable tokens to tell, at most ``MOST_LIKELY``; none costs nothing.
        with_confidence: ``False`` saves a pass over the logits in greedy mode; the confidence is then 1, unless likely
            tokens are asked for.

    Raises:
        SpeqError: a logit is NaN or infinite.
    """
    assert sampling.greedy or sampling.seed is not None
    return checked(_native.draw(logits, *sampling.draw(position, likely), with_confidence), position)


def checked(drawn: Drawn, position: int) -> Choice:
    """What was drawn for ``position``.

    Raises:
        SpeqError: nothing was, since a logit is NaN or infinite.
    """
    choice = Choice(*drawn)
    if choice.token < 0:
        raise SpeqError(
            f"the model's logits at position {position} are not finite: its weights hold NaN or infinity, or overflow; "
            "`speq inspect` names such tensors"
        )
    return choice
