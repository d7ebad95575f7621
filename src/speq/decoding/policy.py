"""How much to propose, and which stages: the choice that yields the most tokens per second.

*Length.* One more drafted token yields (probability that all drafted so far are right) x (mean acceptance) tokens and
costs a share of a draft pass and a slightly longer verify pass. It is worth it while its tokens per second exceed the
rate reached overall: the stopping rule that maximises a long-run rate (Dinkelbach's iteration, with the measured rate
as its estimate). The stronger the draft's confidence, the longer the draft.

*Rows.* What a first stage proposes to a draft pass comes the most probable first. Each further row yields the
probability that it and its path are right, in drafted tokens, and costs what a larger pass costs; as many are taken as
make the difference largest.

*Stages.* What a first stage proposes may go straight to the exact level instead. Of each size of it the tokens that are
expected over what the pass costs are a rate; where the best of them exceeds the rate of rounds with a draft, both that
of late and that which the same proposal promises with a draft pass before, the draft is left out.

*Whether.* With ``may_pause`` plain steps are timed now and then, and when rounds with a draft turn out slower, drafting
pauses, with one round tried in between pauses that double, from 8 steps (more if a round loses much) up to 256. So a
draft that never pays costs next to nothing.

*With others.* A pass is paid for by the sequences that share it. What a step costs a sequence is reckoned as if all of
them did alike, and a draft that others have ended is paid for by those who go on. What is learnt of rounds among few
sequences says nothing about many: it is kept apart for 1, 2, 3 to 4, 5 to 8 ... of them at a time. When they fill a
pass by themselves, a longer verify pass costs as much as it yields, and drafting ends.

*Own time.* What a first stage takes beside the passes, little for look-ups, more for a trained head and most for
another model, counts in the cost of its proposals like any pass. With ``may_pause`` one that takes more time than its
right tokens save is asked no more, but for one try after each of the silences, which double.

What passes cost and how often tokens are right is measured on the way, so there is no threshold to tune. None of this
changes a token: only the time differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from speq.decoding.acceptance import DRAFT_BELIEFS, Acceptance
from speq.decoding.costs import Average, PassCosts
from speq.decoding.verify import Proposal, Verification
from speq.limits import QUICK_ROWS

MOST_PROPOSED = QUICK_ROWS - 1  # the longest proposal whose verify pass costs little more than one token

_KEEP = 0.97  # weight of older rounds in the rate
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256
_FIRST_GAP, _LONGEST_GAP = 4, 128  # rounds between two timed plain steps
_PATIENCE = 1.5  # rounds of evidence before drafting may pause
_BELIEF = 2.0  # rounds with a draft that expectation counts for beside those of late
_LOSS_SHARE = 0.03  # of a plain step: what a pause may lose per step for the round tried after it
_FREE = 0.01  # of a plain step: own time of a first stage that is always asked, since it learns on the way
_TRIALS = 4  # proposals of a first stage before it may fall silent
_FIRST_SILENCE, _LONGEST_SILENCE = 4, 256  # proposals that it is not asked for between two tries
_RIGHT_MEMORY = 0.15  # of what its proposals gain: there are few of them once it is silent


@dataclass
class Situation:
    """What a sequence finds when it plans a round; whoever runs its passes keeps it up to date.

    Attributes:
        costs: of passes.
        load: sequences that share the exact passes, this one among them.
        drafting: of these, how many shared the last draft pass that this one took part in.
    """

    costs: PassCosts = field(default_factory=PassCosts)
    load: int = 1
    drafting: int = 1


class _Experience:
    """What was learnt while about so many sequences shared the passes."""

    def __init__(self) -> None:
        self.tokens = self.cost = self.weight = 0.0  # of rounds with a draft, older ones forgotten
        self.pause, self.pause_left, self.on_trial = _FIRST_PAUSE, 0, False
        self.gap, self.since_plain = _FIRST_GAP, _FIRST_GAP
        self.rows, self.yielded = Average(), Average()  # of a draft pass: its rows, and the drafted tokens it gave


class Policy:
    """Plans the rounds of a sequence and learns from them; one policy may serve many generations in turn.

    Args:
        length: draft exactly this many tokens each round; ``None`` decides by confidence and cost.
        may_pause: whether rounds without a draft are allowed when drafting does not pay.
    """

    def __init__(self, length: int | None = None, *, may_pause: bool = False) -> None:
        self._length = length
        self._may_pause = may_pause
        self._draft = Acceptance(DRAFT_BELIEFS)  # of what the draft level proposes
        self._first = Acceptance()  # of a first stage, at either level
        self._own = Average(_RIGHT_MEMORY)  # cost of the time that a first stage takes for a proposal
        self._right = 1.0  # tokens of its proposals that are right, on average
        self._silence, self._silent = _FIRST_SILENCE, 0
        self._experiences: dict[int, _Experience] = {}
        self._situation = Situation()
        self._now = self._among(1)
        self._is_plain = self._pauses = False
        self._told = 0  # proposals of a first stage in this round

    def plan(self, limit: int, situation: Situation) -> int:
        """The most tokens to propose in the next round, at most ``limit``; 0 is a plain step."""
        self._situation = situation
        self._now = now = self._among(situation.load)
        situation.drafting = situation.load  # until a pass shows who drafts
        self._is_plain = self._pauses = False
        self._told = 0
        if self._may_pause and limit:
            if now.pause_left:
                now.pause_left -= 1
                self._pauses = True
                if not now.pause_left:  # things may have changed meanwhile
                    situation.costs.doubt("draft")
            elif now.since_plain >= now.gap:
                now.gap = min(2 * now.gap, _LONGEST_GAP)
                self._is_plain = True
                return 0
        return min(limit, MOST_PROPOSED if self._length is None else self._length)

    def more(self, confidences: Sequence[float]) -> bool:
        """Whether to draft another token after those with ``confidences``."""
        if not confidences or self._length is not None:
            return not self._pauses
        return self._survival(confidences) * self._draft.mean > self._rate() * (
            self._drafted_token() + self._next_row(len(confidences) + 1)
        )

    def asks(self) -> bool:
        """Whether to ask a first stage for a proposal: whether what it takes is less than what it saves."""
        if not self._may_pause or self._own.count < _TRIALS or self._own.value <= self._saved():
            self._silence, self._silent = _FIRST_SILENCE, 0
            return True
        if self._silent:
            self._silent -= 1
            return False
        affordable = int(self._own.value / (_LOSS_SHARE * self._exact(1)))
        self._silent = min(max(self._silence, affordable), _LONGEST_SILENCE)
        self._silence = 2 * self._silent
        return True

    def worth(self, proposal: Proposal, confidences: Sequence[float]) -> int:
        """How many of the first tokens of a proposal are worth a row in a draft pass, after drafted tokens with
        ``confidences``.
        """
        value = self._survival(confidences) * self._draft.mean - self._rate() * self._next_row(len(confidences) + 1)
        costs, drafting = self._situation.costs, self._situation.drafting
        best, most, right = 0, 0.0, 0.0
        for count, reached in enumerate(self._first.reached(proposal), 1):
            right += reached
            added = costs.of("draft", drafting * (count + 1)) - costs.of("draft", drafting)
            if (gain := value * right - self._rate() * added / drafting) > most:
                best, most = count, gain
        return best

    def straight(self, proposal: Proposal, *, or_draft: bool) -> int | None:
        """How many of the first tokens of a proposal to give to the exact level, perhaps none.

        Args:
            or_draft: whether a draft is possible instead; ``None`` chooses that.
        """
        if or_draft and self._length is not None and not self._pauses:
            return None
        reached = self._first.reached(proposal)
        own = self._own_cost
        best, most, right = 0, 1 / (self._exact(1) + own), 1.0
        for count, each in enumerate(reached, 1):
            right += each
            if (rate := right / (self._exact(count + 1) + own)) > most:
                best, most = count, rate
        if not or_draft or self._pauses:
            return best
        return best if best and most > max(self._drafting_rate(), self._promise(reached)) else None

    def learn(self, proposal: Proposal, checked: Verification) -> None:
        """Hear how a first stage's proposal fared, at whatever level, of which perhaps only a beginning was checked."""
        self._told += 1
        self._right += _RIGHT_MEMORY * (self._first.observe_tree(proposal, checked.tokens) - self._right)

    def observe(
        self, confidences: Sequence[float], right: int, passes: int, rows: int, cost: float, own: float = 0.0
    ) -> None:
        """Learn from the round that was planned last.

        Args:
            confidences: of the proposal, of a tree those of its main line.
            right: how many tokens of these were.
            passes, rows: draft passes, and the rows of all of them.
            cost: of the sequence's shares of all passes, and of the drafter's own time.
            own: of the drafter's own time alone.
        """
        now = self._now
        if self._told:
            self._own.add(own / self._told)
        if self._is_plain:
            now.since_plain = 0
        elif passes:
            now.since_plain += 1
            self._draft.observe(confidences, right)
            now.rows.add(rows / passes)
            now.yielded.add(len(confidences) / passes)
            now.tokens = now.tokens * _KEEP + right + 1
            now.cost = now.cost * _KEEP + cost
            now.weight = now.weight * _KEEP + 1
            if self._may_pause:
                self._decide(now)
        elif not self._told:
            self._draft.observe(confidences, right)

    def _saved(self) -> float:
        """What the right tokens of a first stage's proposal save: a draft pass each, without a draft a plain step."""
        situation, plain = self._situation, self._exact(1)
        drafted = situation.costs.of("draft", situation.drafting) / situation.drafting
        return max(self._right * (plain if self._pauses else drafted), _FREE * plain)

    def _among(self, load: int) -> _Experience:
        return self._experiences.setdefault((load - 1).bit_length(), _Experience())

    def _survival(self, confidences: Sequence[float]) -> float:
        """The probability that all drafted tokens are right."""
        survival = 1.0
        for confidence in confidences:
            survival *= self._draft.probability(confidence)
        return survival

    def _exact(self, rows: float) -> float:
        """What an exact pass costs a sequence that has so many rows in it."""
        load = self._situation.load
        return self._situation.costs.of("exact", load * rows) / load

    def _next_row(self, rows: int) -> float:
        """What another row in an exact pass costs beside so many."""
        return max(self._exact(rows + 1) - self._exact(rows), 0.0)

    def _drafted_token(self) -> float:
        """What another drafted token costs."""
        now, drafting = self._now, self._situation.drafting
        rows, yielded = (now.rows.value, now.yielded.value) if now.rows.count else (1.0, 1.0)
        return (self._situation.costs.of("draft", drafting * rows) / drafting + self._own_cost) / yielded

    def _rate(self) -> float:
        """Tokens per cost that the next token has to beat."""
        now, plain = self._now, 1 / self._exact(1)
        return max(plain, now.tokens / now.cost) if now.cost > 0 else plain

    def _drafting_rate(self) -> float:
        """Tokens per cost of rounds with a draft, as they were of late and as the mean acceptance lets expect."""
        now, mean = self._now, self._draft.mean
        tokens, right, cost, expected = 1.0, 1.0, 0.0, 0.0
        for drafted in range(1, MOST_PROPOSED + 1):
            right *= mean
            tokens, cost = tokens + right, cost + self._drafted_token()
            if (rate := tokens / (cost + self._exact(drafted + 1))) <= expected:
                break
            expected = rate
        believed = _BELIEF * max(self._exact(1), now.cost / now.weight if now.weight else 0.0)
        return (now.tokens + believed * expected) / (now.cost + believed)

    @property
    def _own_cost(self) -> float:
        """What a first stage takes for the next proposal: nothing while it is not asked."""
        return 0.0 if self._silent else self._own.value

    def _promise(self, reached: Sequence[float]) -> float:
        """The rate of a round with one draft pass over a beginning of a proposal whose tokens are right so probably."""
        costs, load, mean = self._situation.costs, self._situation.load, self._draft.mean
        drafted, most = 1.0, 0.0
        for count, each in enumerate([0.0, *reached]):
            drafted += each
            cost = costs.of("draft", load * (count + 1)) / load + self._exact(drafted + 1) + self._own_cost
            most = max(most, (1 + mean * drafted) / cost)
        return most

    def _decide(self, now: _Experience) -> None:
        """Pause if rounds with a draft are slower than plain steps, each time for at least twice as long."""
        plain = self._exact(1)
        lost = now.cost - now.tokens * plain
        if lost < 0:
            now.pause, now.on_trial = _FIRST_PAUSE, False
        elif now.on_trial or now.weight >= _PATIENCE:
            affordable = int(lost / now.weight / (_LOSS_SHARE * plain))
            now.pause_left = max(now.pause, min(affordable, _LONGEST_PAUSE))
            now.pause, now.on_trial = min(2 * now.pause_left, _LONGEST_PAUSE), True
            # Most of the evidence is dropped, so that one good round after the pause can change the verdict.
            now.tokens, now.cost, now.weight = now.tokens / 4, now.cost / 4, now.weight / 4
