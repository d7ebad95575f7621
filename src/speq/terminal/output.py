"""What only a terminal gets: progress bars, dim text, and control characters made visible."""

from __future__ import annotations

import json
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_REDRAW = 0.1  # seconds between two drawings of the bars

# What would drive the terminal, as ^[ for escape and <U+009B> for one that is not in ASCII.
_VISIBLE = {
    **{code: f"^{chr(code ^ 64)}" for code in (*range(32), 127) if chr(code) not in "\t\n"},
    **{code: f"<U+{code:04X}>" for code in range(128, 160)},
}


def is_live() -> bool:
    """Whether stdout and stderr are one terminal that understands control sequences."""
    streams = (sys.stdout, sys.stderr)
    return all(map(takes_control_sequences, streams)) and len({os.fstat(it.fileno()).st_rdev for it in streams}) == 1


def takes_control_sequences(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that understands control sequences."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def printable(text: str) -> str:
    """``text`` with control characters made visible, except tabs and the ends of lines."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def json_line(value: object) -> str:
    """``value`` as JSON on one line, readable in any language and without a single control character."""
    return json.dumps(value, ensure_ascii=False).translate({code: f"\\u{code:04x}" for code in range(127, 160)})


def dim(text: str) -> str:
    """``text`` in a faint colour, unless NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") else f"\x1b[2m{text}\x1b[0m"


def note(text: str) -> None:
    """Print one line on stderr that is not an error."""
    line = printable(f"note: {text}")
    print(dim(line) if is_live() else line, file=sys.stderr)


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
        if not takes_control_sequences(sys.stderr):
            return
        if self._progress is None:
            self._progress = _make_bars()
            self._progress.start()
            self._progress.console.show_cursor(True)  # a process that is killed could not bring it back
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    # Drawn when there is something to report, not by a thread of its own, which the system might refuse.
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
