"""Running the command line on a tiny real model, in this process or on a terminal of its own."""

from __future__ import annotations

import fcntl
import io
import os
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any

import pyte
import pytest
import wcwidth

import speq
from speq.cli import run

MAIN = "from speq.cli import main; main()"
TAKE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """One cache for all tests, so that the tiny model is converted once."""
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path_factory.getbasetemp() / "speq-cache"))


@pytest.fixture
def speq_run(capsys, monkeypatch):
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def fails(speq_run):
    """Run a command that must fail with exit code 1 and one line; returns the line."""

    def call(*arguments, **options):
        code, _, err = speq_run(*arguments, **options)
        assert code == 1
        assert err.startswith("speq: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture(scope="session")
def truth(tiny_checkpoint, tmp_path_factory):
    """What the Python interface generates for "hi"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEQ_CACHE", str(tmp_path_factory.getbasetemp() / "speq-cache"))
        return speq.load(tiny_checkpoint, threads=1).generate("hi", max_new_tokens=30, draft="none")


@pytest.fixture
def command():
    """The command line of a process of its own that runs speq, after some Python code."""
    return lambda *arguments, before="": [sys.executable, "-c", before + MAIN, *map(str, arguments)]


class Emulator(pyte.HistoryScreen):
    """A terminal as people have it, beyond what pyte does by itself.

    A wide character does not stand half outside, and a row that was filled is broken again when the width changes. As
    on the least helpful terminals, a cursor that was moved, or at which something was erased, forgets that it waits at
    the right margin, and which character a mark that follows belongs to.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.filled: dict[int, int] = {}  # by identity of a row that goes on in the next: the cells that it has
        self._rows: list[Any] = []  # keeps those rows alive, and so their identities
        self.moved = False
        super().__init__(columns, lines, history=100_000)
        self._bytes = pyte.ByteStream(self)

    def feed(self, data: bytes) -> None:
        self._bytes.feed(data)

    def draw(self, data: str) -> None:
        for character in data:
            width = max(wcwidth.wcwidth(character), 0)
            row = self.buffer[self.cursor.y]
            if width == 0:
                at = self.cursor.x if self.moved else max(self.cursor.x - 1, 0)
                at -= at > 0 and row[at].data == ""
                row[at] = row[at]._replace(data=row[at].data + character)
                continue
            if self.cursor.x + width > self.columns and pyte.modes.DECAWM not in self.mode:
                self.cursor.x = self.columns - width
            elif self.cursor.x + width > self.columns:
                self.filled[id(row)] = self.cursor.x
                self._rows.append(row)
                super().carriage_return()
                super().index()
                row = self.buffer[self.cursor.y]
            cells = [character, ""][:width]
            for cell in cells:
                row[self.cursor.x] = self.cursor.attrs._replace(data=cell)
                self.cursor.x += 1
            self.moved = False

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """Break all text again, keep the rows beneath the cursor and as many above as fit."""
        rows = [*self.history.top, *(self.buffer[y] for y in range(self.lines))]
        cursor_row = len(self.history.top) + self.cursor.y
        broken: list[dict[int, Any]] = [{}]
        filled = {}
        last = max([cursor_row, *(number for number, row in enumerate(rows) if self._text(row))])
        for number, row in enumerate(rows[: last + 1]):
            used = self.filled.get(id(row), len(self._text(row)) if number != cursor_row else self.cursor.x)
            for x in range(used):
                if not row[x].data:
                    continue
                cells = [row[x], *([row[x + 1]] if x + 1 < used and not row[x + 1].data else [])]
                if len(broken[-1]) + len(cells) > columns:
                    filled[len(broken) - 1] = len(broken[-1])
                    broken.append({})
                for cell in cells:
                    broken[-1][len(broken[-1])] = cell
            if number == cursor_row:
                at = len(broken) - 1, len(broken[-1])
            if id(row) not in self.filled:
                broken.append({})
        broken.pop()
        super().resize(lines, columns)
        first = max(0, len(broken) - self.lines)
        self.history.top.clear()
        self.buffer.clear()
        for number, cells in enumerate(broken):
            row = self.buffer[number]
            row.update(cells)
            if number in filled:
                self.filled[id(row)] = filled[number]
                self._rows.append(row)
        for number in range(first):
            self.history.top.append(self.buffer.pop(number))
        for number in range(first, len(broken)):
            self.buffer[number - first] = self.buffer.pop(number)
        self.cursor.y, self.cursor.x = at[0] - first, at[1]

    def erase_in_display(self, *arguments: Any, **options: Any) -> None:
        self.cursor.x, self.moved = min(self.cursor.x, self.columns - 1), True
        for y in range(self.cursor.y, self.lines):
            self.filled.pop(id(self.buffer[y]), None)
        super().erase_in_display(*arguments, **options)

    @staticmethod
    def _text(row: Any) -> str:
        return "".join(row[x].data or "\0" for x in range(max(row, default=-1) + 1)).rstrip(" ")

    def shows(self, text: str) -> bool:
        """Whether a row on the screen begins with ``text``."""
        return any(
            all(self.buffer[y][x].data == character for x, character in enumerate(text)) for y in range(self.lines)
        )

    @property
    def rows(self) -> list[str]:
        """All that was ever on the screen and was not erased, but for spaces at the ends and empty rows below."""
        rows = [*self.history.top, *(self.buffer[y] for y in range(self.lines))]
        texts = ["".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip(" ") for row in rows]
        while texts and not texts[-1]:
            texts.pop()
        return texts


def _forgetting(name: str) -> Any:
    def call(self: Emulator, *arguments: Any, **options: Any) -> None:
        self.cursor.x, self.moved = min(self.cursor.x, self.columns - 1), True
        getattr(pyte.HistoryScreen, name)(self, *arguments, **options)

    return call


for _name in ("index", "cursor_up", "cursor_down", "cursor_back", "save_cursor", "erase_in_line", "tab"):
    setattr(Emulator, _name, _forgetting(_name))


@pytest.fixture
def emulator() -> type[Emulator]:
    return Emulator


class Window:
    """A pseudo-terminal with somebody who looks at it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.fd, self.theirs = os.openpty()
        self._marks = 0
        self.screen = Emulator(columns, lines)
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def look(self, until: str | None = None, seconds: float = 60) -> list[str]:
        """The rows when ``until`` stands in one, or at the end of the output; without it, of what is there already."""
        deadline = time.monotonic() + (seconds if until is not None else 0)
        while not until or not any(until in row for row in self.screen.rows):
            if not self.read(max(0, deadline - time.monotonic())):
                assert time.monotonic() < deadline or until is None, f"not in time: {until!r}, but {self.screen.rows}"
                break
        return self.screen.rows

    def read(self, seconds: float = 0) -> bool:
        """Show what is there, or comes within ``seconds``; ``False`` if nothing does, or the other side is closed."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            self.screen.feed(os.read(self.fd, 65536))
        except OSError:
            return False
        return True

    def hand_over(self) -> None:
        """Leave the other side to the processes that have it."""
        os.close(self.theirs)
        self.theirs = -1

    def close(self) -> None:
        for fd in {self.fd, self.theirs} - {-1}:
            os.close(fd)
        self.fd = self.theirs = -1

    def catch_up(self) -> None:
        """Show all that this process has written so far."""
        self._marks += 1
        os.write(self.theirs, f"\x1b]2;{self._marks}\x07".encode())  # the title of the window
        while self.screen.title != str(self._marks):
            assert self.read(10)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)


@pytest.fixture
def window():
    """Make a window of so many columns and lines."""
    opened = []

    def make(columns=80, lines=24):
        opened.append(Window(columns, lines))
        return opened[-1]

    yield make
    for made in opened:
        made.close()


@pytest.fixture
def terminal(command, tiny_checkpoint, truth, window):
    """Start a command in a window, which is its controlling terminal; returns the process and the window."""
    opened = []

    def start(*arguments, before="", columns=80, lines=24, stdout=None, stderr=None, **variables):
        made = window(columns, lines)
        ours = ("COLUMNS", "LINES", "NO_COLOR")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        process = subprocess.Popen(
            command(*arguments, before=TAKE_TERMINAL + before),
            stdin=made.theirs,
            stdout=stdout or made.theirs,
            stderr=stderr or made.theirs,
            env={**environment, "TERM": "xterm", **variables},
            start_new_session=True,
        )
        made.hand_over()
        opened.append(process)
        return process, made

    yield start
    for process in opened:
        process.kill()
        process.wait()
