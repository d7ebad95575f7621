"""Generations: tokens and passes add up, traces are replayed, and ideal machines reach the known ceiling."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance, Round
from speq.hardware.simulator.load import load, load_accelerator
from speq.hardware.simulator.passes import PassSpec, Simulator
from speq.hardware.simulator.run import Workload, simulate
from speq.hardware.simulator.shapes import Shape

SMALL = load(Shape, "models", "smollm2-135m")
SPEQ, FP16 = (Simulator(load_accelerator(name), SMALL) for name in ("speq", "fp16"))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 90),
    st.lists(st.integers(0, 9).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k))), max_size=30),
)
def test_a_generation_makes_its_tokens_and_no_more(prompt, new, recorded):
    run = simulate(SPEQ, Workload(prompt, new, tuple(Round(*one) for one in recorded)))
    assert run.new_tokens == new
    verified = run.passes.get("verify", 0)
    assert 1 + run.accepted + verified + run.passes.get("step", 0) == new
    assert run.passes.get("draft", 0) == run.drafted
    assert run.passes["prefill"] == 1
    assert run.total.cycles == pytest.approx(sum(cost.cycles for cost in run.by_kind.values()))


def test_draft_passes_over_several_rows_are_replayed():
    run = simulate(SPEQ, Workload(10, 5, (Round(3, 3, ((3, 0), (1, 2)), 5),), cached=4))
    specs = [PassSpec("prefill", 6, 4, 1), PassSpec("draft", 3, 10, 3), PassSpec("draft", 1, 12, 1)]
    specs += [PassSpec("verify", 5, 10, 5)]
    assert run.total.cycles == pytest.approx(sum(SPEQ.cost(spec).cycles for spec in specs))
    assert (run.passes["draft"], run.drafted, run.accepted) == (2, 3, 3)


def test_the_passes_of_a_trace_are_replayed():
    run = simulate(SPEQ, Workload(10, 9, (Round(3, 2), Round(2, 0), Round(0, 0), Round(4, 3)), cached=4))
    # Contexts: 10 -> 13 -> 14 -> 15; the last round may yield 3 tokens only, so it drafts 2.
    specs = [PassSpec("prefill", 6, 4, 1)]
    specs += [PassSpec("draft", 1, c, 1) for c in (10, 11, 12)] + [PassSpec("verify", 4, 10, 4)]
    specs += [PassSpec("draft", 1, c, 1) for c in (13, 14)] + [PassSpec("verify", 3, 13, 3), PassSpec("step", 1, 14, 1)]
    specs += [PassSpec("draft", 1, c, 1) for c in (15, 16)] + [PassSpec("verify", 3, 15, 3)]
    assert run.total.cycles == pytest.approx(sum(SPEQ.cost(spec).cycles for spec in specs))
    assert run.joules == pytest.approx(sum(SPEQ.cost(spec).energy for spec in specs) * 1e-12)
    assert (run.rounds, run.drafted, run.accepted) == (3, 7, 4)


def test_plain_decoding_ignores_drafts():
    plain = simulate(FP16, Workload(5, 20, Acceptance(0.9, 4)))
    assert plain.passes == {"prefill": 1, "step": 19}
    assert plain.total == simulate(FP16, Workload(5, 20, ())).total


def test_the_same_run_gives_the_same_numbers():
    workload = Workload(33, 64, Acceptance(0.9, 5, 0.3))
    assert simulate(Simulator(load_accelerator("speq"), SMALL), workload) == simulate(SPEQ, workload)


# Speed-ups with everything proportional to weight bits, (1 - r^(L+1)) / (1 - r) / (1 + L/4): r = 0.976, r = 0.90.
CEILINGS = [(0.976, 4, 2.38), (0.976, 8, 2.73), (0.976, 12, 2.82), (0.9, 4, 2.05), (0.9, 8, 2.04)]


@pytest.mark.parametrize(("rate", "length", "ceiling"), CEILINGS)
def test_an_ideal_machine_reaches_the_ceiling(rate, length, ceiling):
    """No scales, a wide model with almost no cache, a long text after one token of prompt."""
    ideal = {"memory.latency": 0.0, "array.rows": 16, "buffers.leakage": 0.0}
    scales = {f"passes.draft.{key}.scale_bits": 0 for key in ("linear", "head")}
    bare = SMALL.model_copy(update={"hidden": 4096, "intermediate": 16384, "heads": 1, "kv_heads": 1, "layers": 2})
    workload = Workload(1, 3000, Acceptance(rate, length))
    plain = simulate(Simulator(load_accelerator("fp16", ideal), bare), workload)
    drafted = simulate(Simulator(load_accelerator("speq", ideal | scales), bare), workload)
    assert plain.seconds / drafted.seconds == pytest.approx(ceiling, rel=0.02)


def test_lengths_must_be_positive():
    with pytest.raises(SpeqError, match="at least 1 of each"):
        Workload(0, 5, ())
    with pytest.raises(SpeqError, match="at least 1 of each"):
        dataclasses.replace(Workload(1, 5, ()), new_tokens=0)
