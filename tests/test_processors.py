"""Numbers of threads, and work that is shared among them, also where the system starts none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from speq.errors import SpeqError
from speq.processors import MAX_THREADS, checked_threads, default_threads, map_in_threads


@pytest.fixture(params=["all", "one", "none"])
def startable(request, monkeypatch):
    """How many threads the system starts."""
    left = {"all": 1000, "one": 1, "none": 0}[request.param]
    start = threading.Thread.start

    def limited(self):
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return request.param


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_work_is_done_once_and_in_order(startable, threads):
    done = []

    def square(number):
        done.append(number)
        return number * number

    assert map_in_threads(square, range(50), threads) == [number * number for number in range(50)]
    assert sorted(done) == list(range(50))
    assert map_in_threads(square, [], threads) == []


def test_several_threads_work_at_once():
    together = threading.Barrier(3)
    assert map_in_threads(lambda item: together.wait(10) >= 0, range(3), 3) == [True] * 3


@pytest.mark.parametrize("error", [SpeqError("damaged"), KeyboardInterrupt()])
def test_the_first_failure_in_order_is_raised_and_ends_the_rest(startable, error):
    done = []

    def fail(number):
        if number in (3, 4):
            time.sleep(0.02 * (4 - number))  # the later one fails first
            raise error if number == 3 else ValueError
        done.append(number)
        time.sleep(0.001)

    with pytest.raises(type(error)):
        map_in_threads(fail, range(10_000), 3)
    assert len(done) < 5000
    assert threading.active_count() < 10


def test_numbers_out_of_range_are_refused():
    assert checked_threads(None) == default_threads() >= 1
    assert checked_threads(MAX_THREADS) == MAX_THREADS
    for threads in (0, -1, MAX_THREADS + 1, 99999999999999999999):
        with pytest.raises(SpeqError, match=rf"threads {threads} is out of range: use 1 to {MAX_THREADS}"):
            checked_threads(threads)


def test_blas_is_spared_where_no_thread_can_be_started():
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY or default_threads() < 2:
        pytest.skip("threads cannot be refused here, or nobody wants any")
    code = "import speq; speq.Sampling; import numpy as np; print((np.ones((200, 200)) @ np.ones((200, 200))).sum())"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    for stack in (1 << 47, 1 << 23):  # no system has room for the first
        done = subprocess.run(
            [sys.executable, "-c", code],
            preexec_fn=lambda stack=stack: resource.setrlimit(resource.RLIMIT_STACK, (stack, hard)),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "8000000.0\n", "")
