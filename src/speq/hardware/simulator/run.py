"""A whole generation on an accelerator: which passes it takes and what they cost together.

Recorded rounds are replayed one by one. Under an acceptance model a generation is a Markov chain over the tokens that
it has: a round that begins after i of them leads to i + 1 ... i + L + 1, with probabilities that do not depend on how
it got there. So the expected number of rounds that begin at each i follows from those before it, and the expectation of
whatever adds up over passes (time, energy, bytes, counts) is a sum over i and the outcomes of a round there. It is
exact: every pass has the cost of its own context, and the last round is cut off by the limit of new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance, Round
from speq.hardware.simulator.cost import Cost
from speq.hardware.simulator.passes import Kind, PassSpec, Simulator
from speq.hardware.simulator.trace import Trace


@dataclass(frozen=True)
class Workload:
    """Lengths of a generation, and where its rounds come from.

    Attributes:
        prompt_tokens, new_tokens: the first new token comes from the prefill.
        cached: tokens of the prompt that need no prefill.
        rounds: an acceptance model or recorded rounds; only accelerators with draft passes use them.
    """

    prompt_tokens: int
    new_tokens: int
    rounds: Acceptance | tuple[Round, ...]
    cached: int = 0

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.new_tokens < 1:
            raise SpeqError(
                f"{self.prompt_tokens} prompt tokens and {self.new_tokens} new tokens: there must be at least 1 of each"
            )


def replay(trace: Trace) -> Workload:
    """The generation that a trace recorded."""
    return Workload(trace.prompt_tokens, trace.new_tokens, trace.rounds, trace.cached)


@dataclass
class Run:
    """What a generation cost; under an acceptance model, what it costs on average.

    Attributes:
        total: everything. by_kind: the same, by kind of pass. passes: how many there were of each kind.
        seconds: of the whole generation. prefill_seconds: of its prefill. new_tokens: of which the prefill gave one.
        drafted, accepted, rounds: of drafts; zero for plain decoding.
    """

    new_tokens: int
    frequency: float
    by_kind: dict[Kind, Cost] = field(default_factory=dict)
    passes: dict[Kind, float] = field(default_factory=dict)
    drafted: float = 0
    accepted: float = 0
    rounds: float = 0

    @property
    def total(self) -> Cost:
        everything = Cost()
        for cost in self.by_kind.values():
            everything.add(cost)
        return everything

    @property
    def seconds(self) -> float:
        return self.total.cycles / self.frequency

    @property
    def prefill_seconds(self) -> float:
        return self.by_kind["prefill"].cycles / self.frequency

    @property
    def joules(self) -> float:
        return self.total.energy * 1e-12

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the (expected) seconds of the whole generation."""
        return self.new_tokens / self.seconds

    def count(self, spec: PassSpec, cost: Cost, times: float = 1) -> None:
        """Add a pass, ``times`` over."""
        self.by_kind.setdefault(spec.kind, Cost()).add(cost, times)
        self.passes[spec.kind] = self.passes.get(spec.kind, 0) + times

    def count_rounds(self, one: Round, times: float = 1) -> None:
        """Add a round to the counts of drafts, ``times`` over; one without drafts is a step of plain decoding."""
        if one.drafted:
            self.rounds += times
            self.drafted += one.drafted * times
            self.accepted += one.accepted * times


def simulate(simulator: Simulator, workload: Workload) -> Run:
    """Run a generation: with drafts if the accelerator has draft passes, plainly otherwise.

    Under an acceptance model all that the run holds is an expectation.
    """
    run = Run(workload.new_tokens, simulator.machine.frequency)
    new_in_prefill = workload.prompt_tokens - workload.cached
    _take(run, simulator, PassSpec("prefill", new_in_prefill, workload.cached, 1))
    if simulator.machine.accelerator.passes.draft is None:
        _replay(run, simulator, workload, ())
    elif isinstance(workload.rounds, Acceptance):
        _expect(run, simulator, workload, workload.rounds)
    else:
        _replay(run, simulator, workload, workload.rounds)
    return run


def _replay(run: Run, simulator: Simulator, workload: Workload, recorded: tuple[Round, ...]) -> None:
    """Rounds as they were recorded, and plain steps when there are no more."""
    rounds = iter(recorded)
    context, left = workload.prompt_tokens, workload.new_tokens - 1
    while left > 0:
        one = _limit(next(rounds, Round(0, 0)), left)
        for rows, ahead in one.draft_passes:
            _take(run, simulator, PassSpec("draft", rows, context + ahead, rows))
        _take(run, simulator, _verification(one.verify_rows - 1, context))
        run.count_rounds(one)
        context += one.accepted + 1
        left -= one.accepted + 1


def _expect(run: Run, simulator: Simulator, workload: Workload, model: Acceptance) -> None:
    """The expectation over all generations, by the number of tokens after which a round begins."""
    tokens = workload.new_tokens - 1
    beginning = [1.0] + [0.0] * tokens  # rounds that begin after so many tokens
    drafts = [0.0] * tokens  # draft passes at that context
    outcomes: dict[int, list[tuple[Round, float]]] = {}  # by the longest draft, on which alone they depend
    for done in range(tokens):
        longest = model.longest(tokens - done)
        context, verified = workload.prompt_tokens + done, [0.0] * (longest + 1)
        if beginning[done]:
            if longest not in outcomes:
                outcomes[longest] = model.outcomes(tokens - done)
            for one, probability in outcomes[longest]:
                share = beginning[done] * probability
                beginning[done + one.accepted + 1] += share
                verified[one.drafted] += share
                run.count_rounds(one, share)
            longer = 0.0
            for step in reversed(range(len(verified) - 1)):
                longer += verified[step + 1]
                drafts[done + step] += longer
        if drafts[done]:
            _take(run, simulator, PassSpec("draft", 1, context, 1), drafts[done])
        for drafted, times in enumerate(verified):
            if times:
                _take(run, simulator, _verification(drafted, context), times)


def _take(run: Run, simulator: Simulator, spec: PassSpec, times: float = 1) -> None:
    run.count(spec, simulator.cost(spec), times)


def _verification(drafted: int, context: int) -> PassSpec:
    """The pass that ends a round."""
    return PassSpec("verify" if drafted else "step", drafted + 1, context, drafted + 1)


def _limit(one: Round, left: int) -> Round:
    """A round that yields no more than ``left`` tokens: the loop plans drafts accordingly."""
    if one.drafted < left:
        return one
    return Round(left - 1, min(one.accepted, left - 1))
