"""The accelerator in Amaranth's simulator: results equal the golden array bit for bit, whatever the streams do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speq.hardware.array_parameters import ArrayParameters, Gemm
from speq.hardware.cycles import queue_cycles
from speq.hardware.golden.memory import OPERANDS, store
from speq.hardware.rtl.p3 import P3
from speq.hardware.testbench.bench import RandomStall, assemble
from speq.hardware.verification.vectors import random_product, random_size

SMALL = ArrayParameters(rows=2, columns=2, burst=8)
STREAMS = ("jobs", "results", *OPERANDS, *(f"{operand}_requests" for operand in OPERANDS))
ANY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture], "derandomize": True}


def anything(rng):
    return lambda shape: rng.integers(0, 1 << 16, shape)


def run(simulation, check_bench, jobs, rng, stalls=None, special=0.2):
    products = [random_product(rng, job, special=special) for job in jobs]
    bench = simulation.run(products, memory=store(products, SMALL, anything(rng)), stalls=stalls, limit=20_000)
    check_bench(bench, products, P3)
    return bench


@pytest.mark.parametrize(
    "jobs",
    [
        [Gemm(1, 1, 1, False)],
        [Gemm(1, 1, 1, True)],
        [Gemm(3, 7, 5, False)],
        [Gemm(3, 39, 3, True, 16)],
        [Gemm(2, 3, 2, False), Gemm(1, 5, 3, True, 4), Gemm(3, 2, 2, False), Gemm(2, 8, 2, True, 4)],
    ],
    ids=str,
)
def test_products_of_any_size_and_their_cycles(simulation, check_bench, jobs):
    """Sizes that fill no tile; padding holds garbage; jobs of both modes follow each other without a gap."""
    bench = run(simulation(SMALL, P3), check_bench, jobs, np.random.default_rng(1))
    assert bench.cycles == queue_cycles(jobs, SMALL)


@settings(max_examples=6, **ANY)
@given(seed=st.integers(0, 1 << 20), shares=st.lists(st.sampled_from([0, 0, 0.2, 0.6]), min_size=10, max_size=10))
def test_stalls_change_nothing(simulation, check_bench, seed, shares):
    _under_stalls(simulation(SMALL, P3), check_bench, seed, shares)


@pytest.mark.slow
@settings(max_examples=100, **ANY)
@given(seed=st.integers(0, 1 << 20), shares=st.lists(st.sampled_from([0, 0, 0.2, 0.6]), min_size=10, max_size=10))
def test_many_stalls_change_nothing(simulation, check_bench, seed, shares):
    _under_stalls(simulation(SMALL, P3), check_bench, seed, shares)


def _under_stalls(simulation, check_bench, seed, shares):
    rng = np.random.default_rng(seed)
    jobs = [random_size(rng, 4, 12, 4) for _ in range(int(rng.integers(1, 4)))]
    stalls = {
        name: RandomStall(seed + index, share) for index, (name, share) in enumerate(zip(STREAMS, shares, strict=True))
    }
    bench = run(simulation, check_bench, jobs, rng, stalls)
    # Nothing is asked for twice: every block of outputs reads its lines once.
    lines = dict.fromkeys(OPERANDS, 0)
    for job in jobs:
        blocks = -(-job.outputs // SMALL.columns) * -(-job.tokens // SMALL.rows)
        fours = -(-job.inputs // 4)
        lines["codes"] += blocks * fours
        lines["activations"] += blocks * fours
        lines["residuals" if not job.draft else "scales"] += blocks * (
            job.inputs if not job.draft else -(-job.inputs // job.group_size)
        )
    assert bench.requested == lines


def test_a_token_is_independent_of_its_batch(simulation):
    """A row's result is the same bits alone, in a larger pass, in another row, and between passes of the other mode."""
    rng = np.random.default_rng(3)
    for draft in (False, True):
        many = random_product(rng, Gemm(3, 10, 2, draft, 4), special=0)
        other = random_product(rng, Gemm(2, 5, 3, not draft, 4), special=0)
        alone = type(many)(many.activations[1:2], many.weights, draft)
        bench = simulation(SMALL, P3).run([other, many, other, alone])
        results = assemble(bench.results, [(2, 3), (3, 2), (2, 3), (1, 2)])
        assert np.array_equal(results[1][1], results[3][0])
        assert np.array_equal(results[0], results[2])


def test_a_job_of_size_zero_is_dropped(simulation, check_bench):
    rng = np.random.default_rng(4)
    products = [random_product(rng, Gemm(1, 3, 1, False)) for _ in range(2)]
    memory = store(products, SMALL)
    for size in ("tokens", "inputs", "outputs"):
        memory.jobs.insert(1, {**memory.jobs[0], size: 0})
    bench = simulation(SMALL, P3).run(products, memory=memory, limit=200)
    check_bench(bench, products, P3)
    assert len(bench.began) == 5
