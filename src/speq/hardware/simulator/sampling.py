"""Monte Carlo of the acceptance model, to hold the expectation of :mod:`speq.hardware.simulator.run` against.

Nothing here knows a probability of a round: every drafted token of every sampled generation is drawn on its own, right
with probability r and, when it is the first wrong one, foreseen with probability s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.compare import Comparison
from speq.hardware.simulator.cost import Cost
from speq.hardware.simulator.experiment import DRAFT_KEYS, Changes, Pair, accelerator_with, workload_of
from speq.hardware.simulator.load import load
from speq.hardware.simulator.passes import Kind, PassSpec, Simulator
from speq.hardware.simulator.run import Workload, simulate
from speq.hardware.simulator.shapes import Shape, Task

GENERATIONS = 16_384
_BATCHES = 32
_SEED = 20251018


@dataclass(frozen=True)
class Check:
    """Expected and sampled time and energy of the subject for one setting of the model and one pair.

    ``errors`` are the standard errors of the sampled means over the means: of seconds, of joules.
    """

    acceptance: Acceptance
    pair: Pair
    expected: tuple[float, float]
    sampled: tuple[float, float]
    errors: tuple[float, float]

    @property
    def differences(self) -> tuple[float, float]:
        """The expectation over the sampled mean, less 1: of seconds, of joules."""
        return (self.expected[0] / self.sampled[0] - 1, self.expected[1] / self.sampled[1] - 1)


def sample_rounds(
    model: Acceptance, new_tokens: int, generations: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean rounds per generation, [batches, tokens, drafted]: how many begin after that many tokens and draft so many.

    A mean over the batches is the sampled one; they are independent, so its standard error is theirs over the root of
    their number. ``generations`` is rounded up to whole batches.
    """
    each = -(-generations // _BATCHES)
    tokens, width = new_tokens - 1, model.draft_length + 1
    counts = np.zeros((_BATCHES, max(1, tokens), width))
    done = np.zeros((_BATCHES, each), np.int64)
    while True:
        batch, generation = np.nonzero(done < tokens)
        if not len(batch):
            return counts / each
        at = done[batch, generation]
        most = np.minimum(model.draft_length, tokens - at - 1)
        right = (rng.random((len(at), model.draft_length)) < model.rate).cumprod(axis=1).sum(axis=1)
        foreseen = rng.random(len(at)) < model.early_stop
        drafted = np.minimum(most, np.where(foreseen, right, model.draft_length))
        np.add.at(counts, (batch, at, drafted), 1)
        done[batch, generation] += np.minimum(right, drafted) + 1


def cost_of_rounds(
    simulator: Simulator, workload: Workload, longest: int, needed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Cycles and picojoules [2, tokens, longest + 1] of a round that begins there, where ``needed`` [tokens, ...]."""
    result = np.zeros((2, *needed.shape))
    steps = [
        _pair(simulator.cost(PassSpec("draft", 1, workload.prompt_tokens + at, 1))) for at in range(needed.shape[0])
    ]
    before = np.concatenate([np.zeros((2, 1)), np.cumsum(np.array(steps).T, axis=1)], axis=1)
    for at, drafted in zip(*map(np.ndarray.tolist, np.nonzero(needed)), strict=True):
        kind: Kind = "verify" if drafted else "step"
        spec = PassSpec(kind, drafted + 1, workload.prompt_tokens + at, drafted + 1)
        result[:, at, drafted] = before[:, at + drafted] - before[:, at] + _pair(simulator.cost(spec))
    return result


def checks(comparison: Comparison, generations: int = GENERATIONS) -> Iterator[Check]:
    """The expectation of every pair beside the sampled mean, for every acceptance, draft length and early stop that the
    scenario and its knobs name: all combinations of the first two, early stops with the scenario's own.
    """
    scenario, rng = comparison.scenario, np.random.default_rng(_SEED)
    simulators: dict[tuple[str, str], Simulator] = {}
    for setting in settings_of(comparison):
        changes = {**scenario.settings, **setting}
        sampled: dict[tuple[Acceptance, int], NDArray[np.float64]] = {}
        for pair in scenario.pairs:
            workload = workload_of(load(Task, "tasks", pair.task), scenario.drafts, changes)
            model = workload.rounds
            assert isinstance(model, Acceptance)
            key = (model, workload.new_tokens)
            if key not in sampled:
                sampled[key] = sample_rounds(*key, generations, rng)
            where = (pair.model, pair.task)
            if where not in simulators:
                accelerator = accelerator_with(scenario.subject, changes)
                simulators[where] = Simulator(accelerator, load(Shape, "models", pair.model))
            yield _check(simulators[where], workload, model, sampled[key], pair)


def settings_of(comparison: Comparison) -> list[Changes]:
    """The settings of the acceptance model that a scenario and its knobs name."""
    drafts = comparison.drafts
    own = {"acceptance": drafts.rate, "draft_length": float(drafts.draft_length), "early_stop": drafts.early_stop}
    values = {name: {value} for name, value in own.items()}
    for knob in comparison.scenario.knobs:
        for name in values:
            if f"workload.{name}" in knob.keys:
                values[name] |= set(knob.values)
    grid = [(rate, length, own["early_stop"]) for rate in values["acceptance"] for length in values["draft_length"]]
    grid += [(own["acceptance"], own["draft_length"], stop) for stop in values["early_stop"]]
    return [dict(zip(map("workload.{}".format, DRAFT_KEYS), one, strict=True)) for one in sorted(set(grid))]


def describe(found: list[Check]) -> list[dict[str, Any]]:
    """The checks as plain data."""
    return [
        {
            "acceptance": one.acceptance.rate,
            "draft_length": one.acceptance.draft_length,
            "early_stop": one.acceptance.early_stop,
            "model": one.pair.model,
            "task": one.pair.task,
            "expected": {"seconds": one.expected[0], "joules": one.expected[1]},
            "sampled": {"seconds": one.sampled[0], "joules": one.sampled[1]},
            "standard_error": {"seconds": one.errors[0], "joules": one.errors[1]},
        }
        for one in found
    ]


def _check(
    simulator: Simulator, workload: Workload, model: Acceptance, counts: NDArray[np.float64], pair: Pair
) -> Check:
    run = simulate(simulator, workload)
    prefill = run.by_kind["prefill"]
    costs = cost_of_rounds(simulator, workload, model.draft_length, np.any(counts > 0, axis=0))
    sampled = np.einsum("qad,bad->qb", costs, counts) + np.array(_pair(prefill))[:, None]
    means, errors = sampled.mean(axis=1), sampled.std(axis=1, ddof=1) / math.sqrt(_BATCHES)
    seconds, joules = means[0] / simulator.machine.frequency, means[1] * 1e-12
    return Check(
        model,
        pair,
        (run.seconds, run.joules),
        (float(seconds), float(joules)),
        (float(errors[0] / means[0]), float(errors[1] / means[1])),
    )


def _pair(cost: Cost) -> tuple[float, float]:
    return cost.cycles, cost.energy
