"""One caller at a time, whatever the callers do."""

from __future__ import annotations

import os
import threading

import pytest

from speq.errors import SpeqError
from speq.runtime.turns import Turns


def test_turns_never_overlap():
    turns, inside, most, counts = Turns("the thing"), [], [], []

    def turn():
        inside.append(1)
        most.append(len(inside))
        inside.pop()
        return 1

    def work():
        counts.append(sum(turns.take(turn) for _ in range(2000)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2000] * 6
    assert max(most) == 1


def test_a_turn_within_a_turn_is_refused_and_the_next_one_is_not():
    turns = Turns("the thing")
    with pytest.raises(SpeqError, match="the thing is in the middle of a pass of this thread"):
        turns.take(lambda: turns.take(lambda: 1))
    assert turns.take(lambda: 2) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, StopIteration])
def test_an_exception_ends_a_turn(error):
    turns = Turns("the thing")

    def fail():
        raise error

    with pytest.raises(error):
        turns.take(fail)
    assert turns.take(lambda: 1) == 1


def test_a_child_is_told_before_it_waits(monkeypatch):
    turns = Turns("the thing")
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(SpeqError, match="the thing belongs to the process that this one was forked from"):
        turns.take(lambda: 1)
