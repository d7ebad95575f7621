"""How many cycles the array takes, as a formula; the tests hold it equal to the RTL.

The controller issues one *step* per cycle: one input per token in an exact pass, four in a draft pass. A *sum* is what
a processing element adds up before its result is taken out: all inputs in an exact pass, one group of them in a draft
pass. After the last step of a sum its rows leave the array one per cycle, so the last steps of two sums are at least
as many cycles apart as rows were in use; in a draft the scaler's loop sets a floor as well (``GROUP_SPACING``).
Everything else overlaps, if streams never stall: results are taken at once, and a requested burst arrives from the
next cycle on, one beat per cycle.
"""

from __future__ import annotations

from collections.abc import Sequence

from speq.hardware.array_parameters import (
    COMMAND_TO_STEP,
    GROUP_SPACING,
    LANES,
    STEP_TO_RESULT,
    ArrayParameters,
    Gemm,
)

__all__ = ["ArrayParameters", "Gemm", "array_cycles", "issue_cycles", "queue_cycles"]


def array_cycles(
    tokens: int, inputs: int, outputs: int, draft: bool, array: ArrayParameters, group_size: int = 64
) -> int:
    """Cycles of one matrix product on an idle array, from the job's transfer to that of its last result, both counted.

    ``group_size`` matters in drafts only. Raises SpeqError for sizes that the array cannot do.
    """
    return queue_cycles([Gemm(tokens, inputs, outputs, draft, group_size)], array)


def queue_cycles(jobs: Sequence[Gemm], array: ArrayParameters) -> int:
    """The same for jobs that wait in a queue, drafts and exact passes in any order: the next begins without a gap."""
    rows, steps = 0, 0
    for job in jobs:
        steps += issue_cycles(job, array, rows)
        rows = _last_rows(job, array)
    return COMMAND_TO_STEP + (steps - 1) + array.pe_latency + STEP_TO_RESULT + (rows - 1) + 1


def issue_cycles(job: Gemm, array: ArrayParameters, rows_before: int = 0) -> int:
    """Cycles in which a job has the array: from its first step to its last, both counted.

    ``rows_before`` are the rows of the sum before it, which leave the array while this job's first sum is computed.
    """
    full, last = (job.tokens - 1) // array.rows, _last_rows(job, array)
    blocks = -(-job.outputs // array.columns)
    groups = _group_steps(job)
    # Per column block: `full` row blocks with all rows in use, then one with `last`; each waits for the rows of the
    # one before it, which for the first row block is the last of the previous column block.
    if full == 0:
        lead = max(groups[0], rows_before) + (blocks - 1) * max(groups[0], last)
        return lead + blocks * _later_groups(groups, last, job.draft)
    lead = (
        max(groups[0], rows_before) + (blocks - 1) * max(groups[0], last) + blocks * full * max(groups[0], array.rows)
    )
    later = full * _later_groups(groups, array.rows, job.draft) + _later_groups(groups, last, job.draft)
    return lead + blocks * later


def _last_rows(job: Gemm, array: ArrayParameters) -> int:
    return (job.tokens - 1) % array.rows + 1


def _group_steps(job: Gemm) -> tuple[int, int, int]:
    """Steps of the first sum, number of sums between first and last, steps of the last; (steps, 0, 0) for only one."""
    if not job.draft:
        return job.inputs, 0, 0
    steps, full = -(-job.inputs // LANES), job.group_size // LANES
    if steps <= full:
        return steps, 0, 0
    sums = -(-steps // full)
    return full, sums - 2, steps - (sums - 1) * full


def _later_groups(groups: tuple[int, int, int], rows: int, draft: bool) -> int:
    """Cycles of all sums of an output but the first."""
    first, between, last = groups
    if not last:
        return 0
    apart = max(rows, GROUP_SPACING) if draft else rows
    return between * max(first, apart) + max(last, apart)
