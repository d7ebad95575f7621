"""A whole generation on an accelerator: which passes it takes and what they cost together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """What a generation cost.

    Attributes:
        total: everything. by_kind: the same, by kind of pass. passes: how many there were of each kind.
        seconds: of the whole generation. prefill_seconds: of its prefill. new_tokens: of which the prefill gave one.
        drafted, accepted, rounds: of drafts; zero for plain decoding.
    """

    new_tokens: int
    frequency: float
    total: Cost = field(default_factory=Cost)
    by_kind: dict[Kind, Cost] = field(default_factory=dict)
    passes: dict[Kind, int] = field(default_factory=dict)
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0

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
        """New tokens over the seconds of the whole generation."""
        return self.new_tokens / self.seconds

    def count(self, spec: PassSpec, cost: Cost) -> None:
        """Add one pass."""
        self.total.add(cost)
        self.by_kind.setdefault(spec.kind, Cost()).add(cost)
        self.passes[spec.kind] = self.passes.get(spec.kind, 0) + 1


def simulate(simulator: Simulator, workload: Workload) -> Run:
    """Run a generation: with drafts if the accelerator has draft passes, plainly otherwise."""
    run = Run(workload.new_tokens, simulator.machine.frequency)
    new_in_prefill = workload.prompt_tokens - workload.cached
    _take(run, simulator, PassSpec("prefill", new_in_prefill, workload.cached, 1))
    speculative = simulator.machine.accelerator.passes.draft is not None
    rounds = _rounds(workload.rounds) if speculative else iter(())
    context, left = workload.prompt_tokens, workload.new_tokens - 1
    while left > 0:
        drafted, accepted = _limit(next(rounds, Round(0, 0)), left)
        for step in range(drafted):
            _take(run, simulator, PassSpec("draft", 1, context + step, 1))
        kind: Kind = "verify" if drafted else "step"
        _take(run, simulator, PassSpec(kind, drafted + 1, context, drafted + 1))
        if drafted:
            run.rounds, run.drafted, run.accepted = run.rounds + 1, run.drafted + drafted, run.accepted + accepted
        context += accepted + 1
        left -= accepted + 1
    return run


def _take(run: Run, simulator: Simulator, spec: PassSpec) -> None:
    run.count(spec, simulator.cost(spec))


def _rounds(source: Acceptance | Iterable[Round]) -> Iterator[Round]:
    return source.rounds() if isinstance(source, Acceptance) else iter(source)


def _limit(one: Round, left: int) -> tuple[int, int]:
    """A round that yields no more than ``left`` tokens: the loop plans drafts accordingly."""
    drafted = min(one.drafted, left - 1)
    return drafted, min(one.accepted, drafted)
