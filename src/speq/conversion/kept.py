"""What a long step of a conversion has done so far, kept so that a process that is killed loses a moment's work only.

A step is divided into units (rows of a matrix, samples of a text) that are done in order. The arrays of finished units
are kept as files, one for a range of units, whenever enough time has passed.
"""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from speq.checkpoint.storage import replacing

_SECONDS = 0.5
_STOP = "stop"


class Pace:
    """Tells when so much time has passed that what has been done meanwhile should be kept."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so, the time begins anew."""
        now = time.monotonic()
        due = now - self._began >= _SECONDS
        if due:
            self._began = now
        return due


class Kept:
    """Arrays of steps under way, in a directory of their own.

    Args:
        directory: created with the first file; what is there is taken to be of the same work.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, step: str, start: int, stop: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep the arrays of units ``start`` to ``stop`` (exclusive).

        Raises:
            OSError: as files do.
        """
        self.directory.mkdir(exist_ok=True)
        path = self._path(step, start)
        content: dict[str, Any] = {_STOP: np.array(stop), **arrays}
        with replacing(path, path.with_suffix(".new")) as file:
            np.savez(file, **content)

    def ranges(self, step: str) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """What is kept of a step, in order and without gaps: first unit, end, arrays. Damaged files end it."""
        start = 0
        while (arrays := _read(self._path(step, start))) is not None:
            stop = int(arrays.pop(_STOP))
            if stop <= start:
                return
            yield start, stop, arrays
            start = stop

    def drop(self, step: str) -> None:
        """Forget a step that is finished otherwise."""
        for path in self.directory.glob(f"{_name(step)}-*"):
            path.unlink()

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, step: str, start: int) -> Path:
        return self.directory / f"{_name(step)}-{start}.npz"


def _name(step: str) -> str:
    return xxhash.xxh3_64_hexdigest(step.encode())


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, whose checksums are compared; None if it is absent or damaged."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files} if _STOP in file.files else None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def in_ranges(
    kept: Kept, step: str, units: int, at_once: int, work: Callable[[int, int], dict[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """Do ``work(start, stop)`` for ranges of units, ``at_once`` units each, and keep what it returns while it lasts.

    Returns:
        The arrays of all ranges in order, those kept by an earlier process first.
    """
    done, pace = 0, Pace()
    results: list[dict[str, NDArray[Any]]] = []
    for _, stop, arrays in kept.ranges(step):
        results.append(arrays)
        done = stop
    fresh: list[tuple[int, int]] = []
    for start in range(done, units, at_once):
        stop = min(start + at_once, units)
        results.append(work(start, stop))
        fresh.append((start, stop))
        if pace.due():
            for (first, last), arrays in zip(fresh, results[-len(fresh) :], strict=True):
                kept.keep(step, first, last, arrays)
            fresh.clear()
    return results
