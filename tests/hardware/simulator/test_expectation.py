"""What a generation costs on average: every outcome enumerated, and the Monte Carlo of all settings of a scenario."""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np
import pytest

from speq.hardware.simulator.acceptance import Acceptance, Round
from speq.hardware.simulator.compare import Comparison
from speq.hardware.simulator.cost import Cost
from speq.hardware.simulator.load import load, load_accelerator
from speq.hardware.simulator.passes import Simulator
from speq.hardware.simulator.run import Workload, simulate
from speq.hardware.simulator.sampling import checks, cost_of_rounds, sample_rounds, settings_of
from speq.hardware.simulator.scenario import load_scenario
from speq.hardware.simulator.shapes import Shape

SPEQ = Simulator(load_accelerator("speq"), load(Shape, "models", "smollm2-135m"))
KINDS = ("prefill", "draft", "verify", "step")


def generations(rate, length, stop, left):
    """Every generation of ``left`` tokens as its rounds, with its probability: token by token."""
    if left == 0:
        yield (), 1.0
        return
    most = min(length, left - 1)
    for right in range(most + 1):
        chance = rate**right * (1 - rate if right < most else 1.0)
        ends = ((most, 1.0),) if right == most else ((most, 1 - stop), (right, stop))
        for drafted, share in ends:
            if chance * share:
                for rest, probability in generations(rate, length, stop, left - right - 1):
                    yield (Round(drafted, right), *rest), chance * share * probability


def values_of(run):
    """Everything that a run counts, as one vector."""
    numbers = [run.rounds, run.drafted, run.accepted, *(run.passes.get(kind, 0) for kind in KINDS)]
    for kind in KINDS:
        cost = run.by_kind.get(kind, Cost())
        numbers += [getattr(cost, field.name) for field in fields(Cost)]
    return np.array(numbers, float)


@pytest.mark.parametrize(
    ("rate", "length", "stop", "new"), [(0.7, 3, 0.0, 7), (0.9, 2, 0.4, 7), (0.5, 7, 1.0, 6), (0.0, 2, 0.3, 5)]
)
def test_the_expectation_is_the_mean_over_all_generations(rate, length, stop, new):
    expected, total = 0.0, 0.0
    for rounds, probability in generations(rate, length, stop, new - 1):
        expected = expected + probability * values_of(simulate(SPEQ, Workload(11, new, rounds)))
        total += probability
    assert total == pytest.approx(1)
    found = values_of(simulate(SPEQ, Workload(11, new, Acceptance(rate, length, stop))))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_an_acceptance_of_one_is_the_generation_that_accepts_everything():
    for new in (1, 2, 8, 9, 10, 40):
        rounds = (Round(7, 7),) * new
        assert values_of(simulate(SPEQ, Workload(5, new, Acceptance(1.0, 7)))) == pytest.approx(
            values_of(simulate(SPEQ, Workload(5, new, rounds)))
        )


def test_expected_tokens_add_up():
    run = simulate(SPEQ, Workload(20, 100, Acceptance(0.8, 5, 0.25)))
    verified, steps = run.passes["verify"], run.passes["step"]
    assert 1 + run.accepted + verified + steps == pytest.approx(100)
    assert run.passes["draft"] == pytest.approx(run.drafted)
    assert run.rounds == pytest.approx(verified)


def test_replayed_random_generations_have_the_expected_mean():
    """Tokens drawn one by one with Python's generator, and replayed as if they had been recorded."""
    source, model, new = random.Random(7), Acceptance(0.881, 7, 0.2), 64
    expected = simulate(SPEQ, Workload(30, new, model))
    seconds = []
    for _ in range(500):
        rounds = []
        for _ in range(new):
            right = next((k for k in range(7) if source.random() >= model.rate), 7)
            drafted = right if source.random() < model.early_stop else 7
            rounds.append(Round(drafted, min(drafted, right)))
        seconds.append(simulate(SPEQ, Workload(30, new, tuple(rounds))).seconds)
    error = np.std(seconds) / len(seconds) ** 0.5 / expected.seconds
    assert error < 0.006
    assert abs(np.mean(seconds) / expected.seconds - 1) < 3 * error


def test_sampled_rounds_cost_what_replaying_them_costs():
    model, workload = Acceptance(0.6, 4, 0.5), Workload(9, 30, Acceptance(0.6, 4, 0.5))
    counts = sample_rounds(model, 30, 32, np.random.default_rng(3))
    assert counts.shape == (32, 29, 5)
    costs = cost_of_rounds(SPEQ, workload, 4, np.any(counts > 0, axis=0))
    for batch in counts[:8]:  # of one generation each: what a round accepted follows from where the next one begins
        starts = [(at, int(drafted)) for at, drafted in zip(*np.nonzero(batch), strict=True)]
        ends = [at for at, _ in starts[1:]] + [29]
        rounds = tuple(Round(drafted, end - at - 1) for (at, drafted), end in zip(starts, ends, strict=True))
        run = simulate(SPEQ, Workload(9, 30, rounds))
        cycles = (costs[0] * batch).sum() + run.by_kind["prefill"].cycles
        assert cycles == pytest.approx(run.total.cycles)


def check_all(comparison, generations):
    """Every expectation within 0.5 % of the sampled mean, and that known well enough to tell."""
    found = list(checks(comparison, generations))
    assert len(found) == len(settings_of(comparison)) * len(comparison.scenario.pairs)
    for one in found:
        assert max(one.errors) < 0.0015
        assert max(map(abs, one.differences)) < 0.005
        assert all(abs(d) < 4.5 * e + 1e-9 for d, e in zip(one.differences, one.errors, strict=True))
    return found


def few(scenario, rates, lengths, models, tasks):
    """A scenario with some of its values only."""
    values = {"acceptance": rates, "draft-length": lengths, "early-stop": [0.0, 0.5]}
    knobs = [one.model_copy(update={"values": values[one.name]}) for one in scenario.knobs if one.name in values]
    return Comparison(scenario.model_copy(update={"models": models, "tasks": tasks, "knobs": knobs}))


@pytest.mark.parametrize("name", ["plain", "published-acceptance"])
def test_expectations_are_within_half_a_percent_of_monte_carlo(name):
    some = few(load_scenario(name), [0.7, 0.95], [2.0, 7.0], ["llama-2-7b"], ["gsm8k"])
    found = check_all(some, 8192)
    assert {one.acceptance.rate for one in found} == {0.7, 0.95, load_scenario(name).drafts.rate}
    assert {one.acceptance.early_stop for one in found} == {0.0, 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "published-acceptance", "fitted-precision", "fitted-utilisation"])
def test_all_expectations_of_a_scenario_are_within_half_a_percent_of_monte_carlo(name):
    scenario = load_scenario(name)
    found = check_all(Comparison(scenario), 16_384)
    knobs = {knob.name: set(knob.values) for knob in scenario.knobs}
    assert knobs["acceptance"] <= {one.acceptance.rate for one in found}
    assert knobs["draft-length"] <= {one.acceptance.draft_length for one in found}
