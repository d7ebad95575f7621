"""What the model says about some rows of text, kept while a head is trained on them.

Both levels of the model cost many times what the head costs, so each row is used a few times, with other mixtures of
the two levels' hidden states each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from speq.training.target import LEVELS, ROUND, Level, Target, Tensor
from speq.training.unroll import Truth


class Pool:
    """Rows with the hidden states, choices and distributions of the model.

    Attributes:
        rows: how many.
    """

    def __init__(
        self,
        target: Target,
        taps: Sequence[int],
        tokens: NDArray[np.int32],
        answers: NDArray[np.bool_],
        at_once: int,
        offsets: Callable[[], int],
    ) -> None:
        """Run the model.

        Args:
            target: the model.
            taps: see :meth:`Target.read`.
            tokens, answers: rows of a corpus.
            at_once: rows that are run together.
            offsets: gives where rounds of the draft begin, for each run.
        """
        self.rows = len(tokens)
        self._tokens = torch.from_numpy(tokens.astype(np.int64)).to(target.device)
        wanted = np.zeros_like(answers)
        wanted[:, :-1] = answers[:, 1:]
        self._wanted = torch.from_numpy(wanted).to(target.device)
        features: dict[Level, list[Tensor]] = {level: [] for level in LEVELS}
        final, chosen = [], []
        for first in range(0, self.rows, at_once):
            reading = target.read(self._tokens[first : first + at_once], taps, offsets())
            for level in LEVELS:
                features[level].append(reading.features[level].to(torch.bfloat16))
            final.append(reading.final["draft"].to(torch.bfloat16))
            chosen.append(target.chosen("draft", reading.final["draft"]))
        self._features = {level: torch.cat(features[level]) for level in LEVELS}
        self._final, self._chosen = torch.cat(final), torch.cat(chosen)
        self._dtype = target.dtype

    def truth(self, rows: Tensor) -> Truth:
        """Text and choices of some rows."""
        return Truth(self._tokens[rows], self._chosen[rows], self._wanted[rows])

    def features(self, rows: Tensor, level: Level) -> Tensor:
        """Hidden states of one level."""
        return self._features[level][rows].to(self._dtype)

    def mixed(self, rows: Tensor, generator: Tensor) -> Tensor:
        """Hidden states of some rows, of either level in stretches of a round.

        A head meets both: the exact level's where text is verified, the draft level's behind it.
        """
        length = self._tokens.shape[1]
        drawn = torch.rand((len(rows), -(-length // ROUND)), generator=generator) < 0.5
        exact = drawn.repeat_interleave(ROUND, 1)[:, :length, None].to(self._tokens.device)
        return torch.where(exact, self._features["exact"][rows], self._features["draft"][rows]).to(self._dtype)

    def likely(self, rows: Tensor, head: Tensor) -> Tensor:
        """Probabilities of tokens by the draft level, ``[rows, length, tokens]``; ``head`` has their output rows."""
        with torch.no_grad():
            return F.softmax(F.linear(self._final[rows].to(head.dtype), head).float(), -1).to(head.dtype)
