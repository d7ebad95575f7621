"""The clairvoyant optimum: the fastest way through a text for someone who knows beforehand what will be accepted.

What can be done is known from two sources: the draft level's draws, which say how far a draft that begins at any place
is right; and what first stages propose there. The latter hangs on what they have learnt, so it is taken from a walk
over the text with everything before each place known, and from all passes of all policies that were replayed. So no
replayed policy can be faster, and whatever one of them found out at one place the optimum knows at that place, too.

A round is a chain of draft passes, each over a first stage's proposal or none, then an exact pass over what is right of
them; or an exact pass straight over a first stage's proposal. The best course is found from the end of the text
backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from speq.bench.recording import RecordedText
from speq.bench.replay import Costs, Replayed
from speq.decoding.drafters import Context
from speq.decoding.ngram import NgramDrafter
from speq.decoding.successors import SuccessorTable
from speq.decoding.verify import Proposal, verify
from speq.limits import QUICK_ROWS
from speq.runtime.sampling import Choice, Sampling

LONGEST = 48
"""Tokens of a round that are considered."""

Options: TypeAlias = dict[int, dict[int, int]]
"""By place, how many of a first stage's proposed tokens are right, by the number proposed."""


@dataclass
class Possible:
    """What could be done at each place of one text; places count tokens that are known.

    Attributes:
        to_draft: first stages' proposals to the draft level, by what that draws.
        to_exact: to the exact level.
        rounds: whole rounds that somebody has made: place before, place after, seconds.
        chains: those of them that are drafted token by token at the draft level, or plain.
    """

    to_draft: Options = field(default_factory=dict)
    to_exact: Options = field(default_factory=dict)
    rounds: list[tuple[int, int, float]] = field(default_factory=list)
    chains: list[tuple[int, int, float]] = field(default_factory=list)

    def without_first_stages(self) -> Possible:
        """What could be done if the draft level alone proposed."""
        return Possible(rounds=self.chains)

    def learn(self, replayed: Replayed, costs: Costs) -> None:
        """Take what the passes of a replayed text have met."""
        text = replayed.text
        right = _right_until(text)
        for happened in replayed.rounds:
            begin = happened.context + 1
            for passed in happened.passes:
                at = passed.context + 1
                if passed.rows > 1 and at <= right[begin]:
                    _add(self.to_draft, at, passed.rows - 1, passed.accepted)
            if not happened.passes and happened.proposed:
                _add(self.to_exact, begin, happened.verify.rows - 1, happened.accepted)
            passes = [(passed.level, passed.rows, passed.context) for passed in (*happened.passes, happened.verify)]
            end = min(begin + happened.accepted + 1, len(text.prompt) + len(text.answer))
            whole = (begin, end, sum(costs.whole(*each) for each in passes))
            self.rounds.append(whole)
            if all(passed.rows == 1 for passed in happened.passes) and len(happened.passes) == happened.proposed:
                self.chains.append(whole)


def walk(texts: Sequence[RecordedText], sampling: Sampling) -> list[Possible]:
    """What the free first stage would propose at every place of every text, when all before it is known."""
    table = SuccessorTable()
    found = []
    for text in texts:
        possible, tokens, known = Possible(), text.tokens, len(text.prompt)
        drafter = NgramDrafter(table, QUICK_ROWS - 1)
        for at in range(known + 1, len(tokens)):
            context = Context(
                tokens[:at],
                QUICK_ROWS - 1,
                QUICK_ROWS,
                lambda _: True,
                lambda _: None,
                lambda _: None,
                sampling=sampling,
            )
            proposal = _proposal(drafter, context)
            for level, options in (("draft", possible.to_draft), ("exact", possible.to_exact)):
                path = _path(text, at, proposal, level)
                for count in range(1, len(proposal.tokens) + 1):
                    _add(options, at, count, sum(row <= count for row in path) - 1)
            # The table hears what a real pass would have told it: of the last token, and of the right ones after it.
            rows = [Choice(-1, 0.0)] * (len(proposal.tokens) + 1)
            for depth, row in enumerate(_path(text, at, proposal, "exact")):
                rows[row] = text.draws["exact"][at + depth - known]
            drafter.learn(context, proposal, verify([choice.token for choice in rows], proposal), rows)
        found.append(possible)
    return found


def _proposal(drafter: NgramDrafter, context: Context) -> Proposal:
    try:
        next(drafter.propose(context))
    except StopIteration as stop:
        proposal: Proposal = stop.value
        return proposal
    raise AssertionError("the free first stage asks for a pass")


def _path(text: RecordedText, at: int, proposal: Proposal, level: str) -> list[int]:
    """The rows of a pass over a proposal at a place of the text that a level finds right."""
    tokens, known = text.tokens, len(text.prompt)
    parents = proposal.rows() or range(-1, len(proposal.tokens))
    path = [0]
    for row, token in enumerate(proposal.tokens, 1):
        here = at + len(path) - 1
        if parents[row] == path[-1] and here < len(tokens) and text.draws[level][here - known].token == token:
            path.append(row)
            if tokens[here] != token:  # what follows is the draft's own course
                break
    return path


def fastest(text: RecordedText, possible: Possible, costs: Costs) -> float:
    """Seconds of the best course through a text, after its first token."""
    end, first = len(text.prompt) + len(text.answer), len(text.prompt) + 1
    right = _right_until(text)
    rounds: dict[int, list[tuple[int, float]]] = {}
    for begin, after, seconds in possible.rounds:
        rounds.setdefault(begin, []).append((after, seconds))
    left = {end: 0.0}
    for begin in range(end - 1, first - 1, -1):
        best = min(
            (seconds + left[after] for after, seconds in rounds.get(begin, ())),
            default=float("inf"),
        )
        for count, accepted in {0: 0, **possible.to_exact.get(begin, {})}.items():
            seconds = costs.whole("exact", count + 1, begin - 1)
            best = min(best, seconds + left[min(begin + accepted + 1, end)])
        # The cheapest way to have drafted so far, all of it right.
        reached = {begin: 0.0}
        for at in range(begin, min(right[begin], begin + LONGEST) + 1):
            if at not in reached:
                continue
            if at > begin:
                seconds = reached[at] + costs.whole("exact", at - begin + 1, begin - 1)
                best = min(best, seconds + left[min(at + 1, end)])
            for count, accepted in {0: 0, **possible.to_draft.get(at, {})}.items():
                seconds = reached[at] + costs.whole("draft", count + 1, at - 1)
                # A draft may end anywhere within what a pass has given.
                for to in range(at + 1, min(at + accepted + 1, right[begin], begin + LONGEST) + 1):
                    reached[to] = min(reached.get(to, float("inf")), seconds)
        left[begin] = best
    return left.get(first, 0.0)


@dataclass(frozen=True)
class Optimum:
    """Seconds of the best course through a text: of all, and of those that draft with the draft level alone."""

    whole: float
    chains: float


def optimum(
    texts: Sequence[RecordedText], replays: Iterable[Sequence[Replayed]], sampling: Sampling, costs: Costs
) -> list[Optimum]:
    """The best courses through each text that does not only warm up.

    Args:
        texts: of one recording, in its order.
        replays: of the same texts, but for those that warm up, under any settings.
    """
    possible = dict(zip(map(id, texts), walk(texts, sampling), strict=True))
    for replayed in replays:
        for each in replayed:
            possible[id(each.text)].learn(each, costs)
    return [
        Optimum(fastest(text, known, costs), fastest(text, known.without_first_stages(), costs))
        for text, known in ((text, possible[id(text)]) for text in texts if not text.warms_up)
    ]


def _right_until(text: RecordedText) -> Mapping[int, int]:
    """For each place of the answer the first place from there on at which the draft is wrong, or the end."""
    known, end = len(text.prompt), len(text.prompt) + len(text.answer)
    found = {end: end}
    for at in range(end - 1, known - 1, -1):
        right = text.draws["draft"][at - known].token == text.answer[at - known]
        found[at] = found[at + 1] if right else at
    return found


def _add(options: Options, at: int, count: int, accepted: int) -> None:
    own = options.setdefault(at, {})
    own[count] = max(own.get(count, 0), accepted)
