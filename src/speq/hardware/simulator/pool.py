"""Running the parts of a sweep: in processes of this machine, or on a Ray cluster when one is named."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.hardware.simulator.files import replacing
from speq.hardware.simulator.sweep import Sweep, compute_part, write_part

Done = Callable[[int], None]
"""Called with the number of parts finished so far."""


def run_here(sweep: Sweep, missing: Sequence[tuple[int, Path]], workers: int | None, done: Done) -> None:
    """Compute missing parts in ``workers`` processes, as many as there are cores by default; 1 computes in this one.

    Raises:
        SpeqError: a point is impossible, or so many processes cannot be started. Parts that were finished before stay.
    """
    workers = min(workers or os.cpu_count() or 1, max(1, len(missing)))
    if workers == 1:
        for count, (part, path) in enumerate(missing, 1):
            write_part(sweep, part, path)
            done(count)
        return
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting = [pool.submit(write_part, sweep, part, path) for part, path in missing]
    except (RuntimeError, OSError) as error:  # what they raise where the system starts no more threads or processes
        for child in multiprocessing.active_children():  # which would wait for work for ever, and we for them
            child.terminate()
        raise SpeqError(f"cannot start {workers} processes ({error}): use fewer with --workers") from None
    with pool:
        try:
            for count, one in enumerate(as_completed(waiting), 1):
                one.result()
                done(count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_on_ray(sweep: Sweep, missing: Sequence[tuple[int, Path]], address: str, done: Done) -> None:
    """Compute missing parts on the Ray cluster at ``address`` (``local`` starts one here); parts are written here.

    Raises:
        SpeqError: Ray is not installed, the cluster cannot be reached, or a point is impossible.
    """
    try:
        import ray
    except ImportError:
        raise SpeqError("--ray needs the cluster extra: pip install 'speq[hardware,cluster]'") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SpeqError(f"cannot reach the Ray cluster at {address}: {error}") from None
    try:
        compute = ray.remote(_compute)
        paths = {compute.remote(sweep.model_dump(), part): path for part, path in missing}
        waiting, count = list(paths), 0
        while waiting:
            ready, waiting = ray.wait(waiting)
            for one in ready:
                _write(ray.get(one), paths[one])
                count += 1
                done(count)
    finally:
        ray.shutdown()


def _compute(sweep: dict[str, Any], part: int) -> list[dict[str, Any]] | str:
    """A part's rows, or the message of what is wrong with a point: exceptions lose their type on the way."""
    try:
        return compute_part(Sweep.model_validate(sweep), part)
    except SpeqError as error:
        return str(error)


def _write(rows: list[dict[str, Any]] | str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(rows, str):
        raise SpeqError(rows)
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
