"""The closed formula of the cycles against a model that counts them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.hardware.cycles import ArrayParameters, Gemm, array_cycles, issue_cycles, queue_cycles


def counted(jobs: list[Gemm], array: ArrayParameters) -> int:
    """Cycle by cycle: a step per cycle, a last step only when the sum before it has left its processing elements."""
    cycle = 4  # command, request, beat, buffer
    free = 0  # first cycle in which a sum may end
    for job in jobs:
        for _ in range(0, job.outputs, array.columns):
            for first_token in range(0, job.tokens, array.rows):
                rows = min(array.rows, job.tokens - first_token)
                position = 0
                while position < job.inputs:
                    position += 4 if job.draft else 1
                    final = position >= job.inputs
                    if final or (job.draft and position % job.group_size == 0):
                        cycle = max(cycle, free)
                        free = cycle + (max(rows, 4) if job.draft and not final else rows)
                    cycle += 1
    last_step = cycle - 1
    sum_done = last_step + 1 + array.pe_latency  # through the operand register
    queued = sum_done + 1 + 1 + 3  # captured, normalised, scaled
    return queued + 1 + (rows - 1) + 1


def random_jobs(rng: np.random.Generator, count: int) -> list[Gemm]:
    sizes = rng.integers(1, [20, 150, 30], (count, 3)).tolist()
    return [Gemm(*size, bool(rng.integers(2)), int(rng.choice([4, 8, 32, 64]))) for size in sizes]


def test_formula_equals_counting():
    rng = np.random.default_rng(0)
    for _ in range(300):
        array = ArrayParameters(int(rng.integers(1, 24)), int(rng.integers(1, 20)), int(rng.integers(1, 9)))
        jobs = random_jobs(rng, int(rng.integers(1, 4)))
        assert queue_cycles(jobs, array) == counted(jobs, array), (array, jobs)
        job = jobs[0]
        assert array_cycles(job.tokens, job.inputs, job.outputs, job.draft, array, job.group_size) == counted(
            [job], array
        )


def test_jobs_add_up():
    """In a queue, a job costs what it keeps the array busy for."""
    rng = np.random.default_rng(1)
    array = ArrayParameters(4, 8)
    jobs = random_jobs(rng, 5)
    rows = [0] + [(job.tokens - 1) % array.rows + 1 for job in jobs]
    cost = sum(issue_cycles(job, array, before) for job, before in zip(jobs, rows, strict=False))
    alone = queue_cycles(jobs[-1:], array) - issue_cycles(jobs[-1], array)
    assert queue_cycles(jobs, array) == alone + cost


def test_a_draft_takes_a_quarter_of_the_steps():
    array = ArrayParameters(8, 16)
    exact, draft = (issue_cycles(Gemm(5, 4096, 4096, mode), array) for mode in (False, True))
    assert exact == 4 * draft == 4096 * 4096 // 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayParameters(rows=0), "rows is 0"),
        (lambda: ArrayParameters(columns=5000), "columns is 5000"),
        (lambda: ArrayParameters(burst=1), "burst is 1"),
        (lambda: Gemm(0, 1, 1, False), "tokens is 0"),
        (lambda: Gemm(1, 1, 1 << 20, False), "outputs is 1048576"),
        (lambda: Gemm(1, 1, 1, True, 48), "group size 48"),
    ],
)
def test_sizes_out_of_range_are_one_clear_line(make, message):
    with pytest.raises(SpeqError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
