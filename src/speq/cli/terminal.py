"""What only a terminal gets: progress bars, dim text and a status line that stays at the bottom while text scrolls."""

from __future__ import annotations

import os
import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_REDRAW = 0.1  # seconds between two drawings of the status line, or of the bars


def is_live() -> bool:
    """Whether stdout and stderr are a terminal that understands control sequences."""
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def dim(text: str) -> str:
    """``text`` in a faint colour, unless NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") else f"\x1b[2m{text}\x1b[0m"


def note(text: str) -> None:
    """Print one line on stderr that is not an error."""
    print(dim(f"note: {text}") if is_live() else f"note: {text}", file=sys.stderr)


class ProgressBars:
    """A progress callback ``(label, done, total)`` that draws a bar per label on a terminal, and nothing elsewhere.

    The library that draws is loaded with the first report, so a command that has nothing to report starts at once.

    Attributes:
        labels: all labels that were reported, drawn or not.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._drawn = 0.0
        self._tasks: dict[str, TaskID] = {}
        self.labels: set[str] = set()

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars off the screen; later reports would draw new ones."""
        if self._progress:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def __call__(self, label: str, done: int, total: int) -> None:
        self.labels.add(label)
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            self._progress = _make_bars()
            self._progress.start()
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total, count="")
        self._progress.update(self._tasks[label], completed=done, total=total, count=_count(done, total))
        if done >= total or time.monotonic() - self._drawn >= _REDRAW:
            self._drawn = time.monotonic()
            self._progress.refresh()


def _count(done: int, total: int) -> str:
    """Counts without a unit, which may be bytes, weights or tokens."""
    return f"{done / 1e6:,.1f} of {total / 1e6:,.1f} million" if total >= 1_000_000 else f"{done:,} of {total:,}"


def _make_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    # Drawn when there is something to report, not by a thread of its own, which the system might refuse.
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)


class StatusLine:
    """The last line of the terminal, kept free of the scrolling text by a scroll region (DECSTBM).

    Does nothing unless ``enabled``. Writes go to stdout, in order with the text.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._rows = 0
        self._drawn = 0.0

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rows:
            self._write(f"\x1b7\x1b[r\x1b[{self._rows};1H\x1b[2K\x1b8")
            self._rows = 0

    def show(self, text: str, *, now: bool = False) -> None:
        """Draw ``text``, at most ten times a second unless ``now``."""
        if not self._enabled or (time.monotonic() - self._drawn < _REDRAW and not now):
            return
        self._drawn = time.monotonic()
        columns, rows = shutil.get_terminal_size()
        region = ""
        if rows != self._rows:
            # A line feed makes room if the cursor is on the last line; setting the region moves it, so it is saved.
            region = f"\n\x1b7\x1b[1;{rows - 1}r\x1b8\x1b[1A"
            self._rows = rows
        self._write(f"{region}\x1b7\x1b[{rows};1H\x1b[2K{dim(text[: columns - 1])}\x1b8")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
