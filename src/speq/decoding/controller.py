"""How long to draft, and whether to draft at all: the choice that yields the most tokens per second.

*Length.* One more drafted token yields (probability that all drafted so far are right) x (mean acceptance) tokens and
costs a draft step and a slightly longer verify pass. It is worth it while its tokens per second exceed the rate reached
overall: the stopping rule that maximises a long-run rate (Dinkelbach's iteration, with the measured rate as its
estimate). The stronger the draft's confidence, the longer the draft; costs and acceptance are measured on the way, so
there is no threshold to tune.

*Whether.* With ``may_pause`` plain steps are timed now and then, and when rounds with a draft turn out slower, drafting
pauses, with one round tried in between pauses that double, from 8 steps (more if a round loses much) up to 256. So a
draft that never pays costs next to nothing.

None of this changes a token: only the time differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from speq.decoding.acceptance import Acceptance
from speq.decoding.costs import Costs

MAX_DRAFT = 15  # a verify pass of 16 tokens is the widest that the kernels treat as one

_KEEP = 0.93  # weight of older rounds in the rate
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256
_FIRST_GAP, _LONGEST_GAP = 4, 128  # rounds between two timed plain steps
_PATIENCE = 1.5  # rounds of evidence before drafting may pause
_LOSS_SHARE = 0.03  # of a plain step: what a pause may lose per step for the round tried after it


class Controller:
    """Plans rounds and learns from them; one controller may serve many generations.

    Args:
        length: draft exactly this many tokens each round; ``None`` decides by confidence and cost.
        may_pause: whether rounds without a draft are allowed when drafting does not pay.
    """

    def __init__(self, length: int | None = None, *, may_pause: bool = False) -> None:
        self._length = length
        self._may_pause = may_pause
        self._costs = Costs()
        self._acceptance = Acceptance()
        self._tokens = self._seconds = self._weight = 0.0
        self._pause, self._pause_left, self._on_trial = _FIRST_PAUSE, 0, False
        self._gap, self._since_plain = _FIRST_GAP, _FIRST_GAP

    def plan(self, limit: int) -> int:
        """The most tokens to draft in the next round, at most ``limit``; 0 is a plain step."""
        if self._may_pause and limit:
            if self._pause_left:
                self._pause_left -= 1
                return 0
            if self._since_plain >= self._gap:
                self._gap = min(2 * self._gap, _LONGEST_GAP)
                return 0
        return min(limit, MAX_DRAFT if self._length is None else self._length)

    def more(self, confidences: Sequence[float]) -> bool:
        """Whether to draft another token after those with ``confidences``."""
        if self._length is not None:
            return True
        expected = self._acceptance.mean
        for confidence in confidences:
            expected *= self._acceptance.probability(confidence)
        drafted = len(confidences)
        seconds = self._costs.draft + self._costs.verify(drafted + 2) - self._costs.verify(drafted + 1)
        return expected > self._rate() * max(seconds, 0.0)

    def observe(self, confidences: Sequence[float], accepted: int, draft_seconds: float, verify_seconds: float) -> None:
        """Learn from a round that drafted ``len(confidences)`` tokens."""
        drafted = len(confidences)
        self._costs.observe(drafted, draft_seconds, verify_seconds)
        self._acceptance.observe(confidences, accepted)
        if not drafted:
            self._since_plain = 0
            return
        self._since_plain += 1
        self._tokens = self._tokens * _KEEP + accepted + 1
        self._seconds = self._seconds * _KEEP + drafted * self._costs.draft + self._costs.verify(drafted + 1)
        self._weight = self._weight * _KEEP + 1
        if self._may_pause:
            self._decide()

    def _rate(self) -> float:
        """Tokens per second that the next token has to beat."""
        plain = 1 / max(self._costs.verify(1), 1e-9)
        return max(plain, self._tokens / self._seconds) if self._seconds > 0 else plain

    def _decide(self) -> None:
        """Pause if rounds with a draft are slower than plain steps, each time for at least twice as long."""
        plain = max(self._costs.verify(1), 1e-9)
        lost = self._seconds - self._tokens * plain
        if lost < 0:
            self._pause, self._on_trial = _FIRST_PAUSE, False
        elif self._on_trial or self._weight >= _PATIENCE:
            affordable = int(lost / self._weight / (_LOSS_SHARE * plain))
            self._pause_left = max(self._pause, min(affordable, _LONGEST_PAUSE))
            self._pause, self._on_trial = min(2 * self._pause_left, _LONGEST_PAUSE), True
            # Most of the evidence is dropped, so that one good round after the pause can change the verdict.
            self._tokens, self._seconds, self._weight = self._tokens / 4, self._seconds / 4, self._weight / 4
