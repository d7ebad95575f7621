"""Something that one caller at a time may use: others wait, and whoever would wait for itself is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from speq.errors import SpeqError

Found = TypeVar("Found")


class Turns:
    """Gives turns to callers in any number of threads.

    Args:
        what: the thing that is shared, for error messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()
        self._taken = False
        self._process = os.getpid()

    def take(self, call: Callable[[], Found]) -> Found:
        """Call ``call`` when no other caller's is running.

        A signal (Ctrl-C) may end the wait or the call at any point, and the next caller still gets its turn: the lock
        is taken by a ``with`` on the lock itself, which no signal handler can get into, not by a method of our own.

        Raises:
            SpeqError: from within a turn of the same thread, as in a callback; or in a process that was forked from the
                one it belongs to, where a turn that was running would never end.
        """
        if os.getpid() != self._process:
            raise SpeqError(
                f"{self._what} belongs to the process that this one was forked from and works only there: load it in "
                'this process, or start processes with multiprocessing\'s "spawn"'
            )
        with self._lock:
            if self._taken:
                raise SpeqError(
                    f"{self._what} is in the middle of a pass of this thread: a callback or signal handler cannot use "
                    "it; wait for the call to return, or load the model a second time"
                )
            try:
                self._taken = True
                return call()
            finally:
                self._taken = False
