"""How long to draft, and whether to draft at all: the choice that yields the most tokens per second.

*Length.* One more drafted token yields (probability that all drafted so far are right) x (mean acceptance) tokens and
costs a draft step and a slightly longer verify pass. It is worth it while its tokens per second exceed the rate reached
overall: the stopping rule that maximises a long-run rate (Dinkelbach's iteration, with the measured rate as its
estimate). The stronger the draft's confidence, the longer the draft; costs and acceptance are measured on the way, so
there is no threshold to tune.

*Whether.* With ``may_pause`` plain steps are timed now and then, and when rounds with a draft turn out slower, drafting
pauses, with one round tried in between pauses that double, from 8 steps (more if a round loses much) up to 256. So a
draft that never pays costs next to nothing.

*With others.* Seconds are a sequence's share of the passes it took part in, and what is measured among few sequences
says nothing about many: costs and rates are kept apart for 1, 2, 3 to 4, 5 to 8 ... sequences at a time. When they
fill a pass by themselves, a longer verify pass costs as much as it yields, and drafting ends.

None of this changes a token: only the time differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from speq.decoding.acceptance import Acceptance
from speq.decoding.costs import Costs
from speq.limits import QUICK_ROWS

MAX_DRAFT = QUICK_ROWS - 1  # the longest whose verify pass costs little more than one token

_KEEP = 0.93  # weight of older rounds in the rate
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256
_FIRST_GAP, _LONGEST_GAP = 4, 128  # rounds between two timed plain steps
_PATIENCE = 1.5  # rounds of evidence before drafting may pause
_LOSS_SHARE = 0.03  # of a plain step: what a pause may lose per step for the round tried after it


class _Experience:
    """What was measured while about so many sequences shared the passes."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.tokens = self.seconds = self.weight = 0.0  # of rounds with a draft, older ones forgotten
        self.pause, self.pause_left, self.on_trial = _FIRST_PAUSE, 0, False
        self.gap, self.since_plain = _FIRST_GAP, _FIRST_GAP


class Policy:
    """Plans the rounds of a sequence and learns from them; one policy may serve many generations in turn.

    Args:
        length: draft exactly this many tokens each round; ``None`` decides by confidence and cost.
        may_pause: whether rounds without a draft are allowed when drafting does not pay.
    """

    def __init__(self, length: int | None = None, *, may_pause: bool = False) -> None:
        self._length = length
        self._may_pause = may_pause
        self._acceptance = Acceptance()
        self._experiences: dict[int, _Experience] = {}
        self._now = self._among(1)

    def plan(self, limit: int, load: int = 1) -> int:
        """The most tokens to draft in the next round, at most ``limit``; 0 is a plain step.

        Args:
            load: sequences that share the passes, this one among them.
        """
        self._now = now = self._among(load)
        if self._may_pause and limit:
            if now.pause_left:
                now.pause_left -= 1
                return 0
            if now.since_plain >= now.gap:
                now.gap = min(2 * now.gap, _LONGEST_GAP)
                return 0
        return min(limit, MAX_DRAFT if self._length is None else self._length)

    def more(self, confidences: Sequence[float]) -> bool:
        """Whether to draft another token after those with ``confidences``."""
        if self._length is not None:
            return True
        expected = self._acceptance.mean
        for confidence in confidences:
            expected *= self._acceptance.probability(confidence)
        drafted, costs = len(confidences), self._now.costs
        seconds = costs.draft + costs.verify(drafted + 2) - costs.verify(drafted + 1)
        return expected > self._rate() * max(seconds, 0.0)

    def observe(
        self,
        confidences: Sequence[float],
        right: int,
        draft_seconds: float,
        verify_seconds: float,
        *,
        drafted: int | None = None,
        accepted: int | None = None,
    ) -> None:
        """Learn from the round that was planned last.

        Args:
            confidences: of the draft, or of the main line of a tree.
            right: how many tokens of these were.
            drafted, accepted: of a tree, all its tokens, and those on the path that stays.
        """
        drafted = len(confidences) if drafted is None else drafted
        accepted = right if accepted is None else accepted
        now = self._now
        now.costs.observe(drafted, draft_seconds, verify_seconds)
        self._acceptance.observe(confidences, right)
        if not drafted:
            now.since_plain = 0
            return
        now.since_plain += 1
        now.tokens = now.tokens * _KEEP + accepted + 1
        now.seconds = now.seconds * _KEEP + drafted * now.costs.draft + now.costs.verify(drafted + 1)
        now.weight = now.weight * _KEEP + 1
        if self._may_pause:
            self._decide(now)

    def _among(self, load: int) -> _Experience:
        return self._experiences.setdefault((load - 1).bit_length(), _Experience())

    def _rate(self) -> float:
        """Tokens per second that the next token has to beat."""
        now = self._now
        plain = 1 / max(now.costs.verify(1), 1e-9)
        return max(plain, now.tokens / now.seconds) if now.seconds > 0 else plain

    def _decide(self, now: _Experience) -> None:
        """Pause if rounds with a draft are slower than plain steps, each time for at least twice as long."""
        plain = max(now.costs.verify(1), 1e-9)
        lost = now.seconds - now.tokens * plain
        if lost < 0:
            now.pause, now.on_trial = _FIRST_PAUSE, False
        elif now.on_trial or now.weight >= _PATIENCE:
            affordable = int(lost / now.weight / (_LOSS_SHARE * plain))
            now.pause_left = max(now.pause, min(affordable, _LONGEST_PAUSE))
            now.pause, now.on_trial = min(2 * now.pause_left, _LONGEST_PAUSE), True
            # Most of the evidence is dropped, so that one good round after the pause can change the verdict.
            now.tokens, now.seconds, now.weight = now.tokens / 4, now.seconds / 4, now.weight / 4
