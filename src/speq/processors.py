"""How many threads to use, and work that is shared among them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from speq.errors import SpeqError

MAX_THREADS = 1024
"""More than any machine has that this is made for: a larger number is a slip, and would only take memory."""

Item = TypeVar("Item")
Found = TypeVar("Found")


def default_threads() -> int:
    """The processors this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, MAX_THREADS)


def checked_threads(threads: int | None) -> int:
    """The number of threads that was asked for, or that of the processors.

    Raises:
        SpeqError: out of range.
    """
    if threads is None:
        return default_threads()
    if not 1 <= threads <= MAX_THREADS:
        raise SpeqError(f"threads {threads} is out of range: use 1 to {MAX_THREADS}")
    return threads


def spare_blas() -> None:
    """Keep NumPy's BLAS from starting threads where the system would not start them; to be called before NumPy comes.

    OpenBLAS starts one per processor when it is loaded, and where that fails it prints advice and interrupts the
    process (it raises SIGINT). So as many are tried first.
    """
    if "numpy" in sys.modules or "OPENBLAS_NUM_THREADS" in os.environ:
        return
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(default_threads() - 1):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
    finally:
        done.set()
        for thread in started:
            thread.join()


def map_in_threads(work: Callable[[Item], Found], items: Iterable[Item], threads: int) -> list[Found]:
    """``work`` of every item, in order, computed by the calling thread and up to ``threads - 1`` others.

    Where the system does not start so many threads, those that it starts share the work: the calling thread alone, if
    need be.

    Raises:
        BaseException: what ``work`` raised first, in the order of the items.
    """
    todo = iter(enumerate(items))
    lock, stopped = threading.Lock(), threading.Event()
    found: dict[int, Found] = {}
    failed: dict[int, BaseException] = {}

    def run() -> None:
        while not stopped.is_set():
            with lock:
                following = next(todo, None)
            if following is None:
                return
            index, item = following
            try:
                found[index] = work(item)
            except BaseException as error:  # raised again below, in the calling thread
                failed[index] = error
                stopped.set()

    helpers: list[threading.Thread] = []
    try:
        for _ in range(threads - 1):
            helper = threading.Thread(target=run, daemon=True)
            try:
                helper.start()
            except RuntimeError:  # the system has no more threads for us
                break
            helpers.append(helper)
        run()
    except BaseException:
        stopped.set()
        raise
    finally:
        for helper in helpers:
            helper.join()
    if failed:
        raise failed[min(failed)]
    return [found[index] for index in range(len(found))]
