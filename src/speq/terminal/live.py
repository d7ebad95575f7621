"""The text of a generation while it appears, and on a terminal a status line in the row beneath it.

The text goes to stdout as it comes, each character once, wherever the cursor stands; so the terminal itself breaks it
into rows, keeps it when it scrolls away, and breaks it again when it is resized. The status goes to stderr: it is drawn
with relative movements from the end of the text and back, and erased before the text can reach it. A live display that
draws the unfinished line again and again, as rich has one, would break that line into rows by its own idea of the
width of characters, and leave pieces of it behind when the terminal is resized.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr
from types import FrameType, TracebackType
from typing import Any, TextIO, cast

from speq.terminal.cursor import Cursor
from speq.terminal.output import dim, is_live, printable

_REDRAW = 0.1  # seconds between two drawings of a status line that still stands
_MIN_COLUMNS, _MIN_ROWS = 20, 3  # on anything smaller the text needs all the room
# Index and up: one row more exists from here on, and the cursor stands where it stood. Then down, write, and back. The
# status does not go on in another row even if the terminal has become narrower since it was asked.
_TO_STATUS, _FROM_STATUS = "\x1bD\x1b[A\x1b7\x1b[B\r\x1b[?7l", "\x1b[K\x1b[?7h\x1b8"
_ERASE = "\x1b[J"  # from the cursor to the end of the screen
_ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP")  # signals that end or stop a process that does not catch them


class LiveText:
    """Writes a text to stdout piece by piece.

    A terminal sees control characters made visible, so that a text cannot drive it. If stdout and stderr are one
    terminal, ``status`` stands in the row beneath; whatever is typed does not appear in the text; and what the program
    itself writes to stderr goes to a row of its own. Anything else gets exactly the text.
    """

    def __init__(self) -> None:
        self._terminal, self._live = sys.stdout.isatty(), is_live()
        self._stderr = sys.stderr
        columns, _ = _size()
        self._columns, self._cursor = columns, Cursor(columns or sys.maxsize)
        self._held = ""  # a carriage return, until it is known whether a line feed follows
        self._aside = False  # whether stderr stands in the middle of a line
        self._drawn, self._drawn_at = False, 0.0
        self._begun = False
        self._exit = ExitStack()

    def __enter__(self) -> LiveText:
        if self._live:
            self._exit.callback(self._erase)
            self._exit.callback(_show_typing, self._stderr, _hide_typing(self._stderr))
            self._catch_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def write(self, text: str, status: str = "") -> None:
        """Write a piece of the text, and show ``status``, which is one line of narrow characters, if it has room."""
        if not self._terminal:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        if self._live and not self._begun:  # until then progress bars may have the terminal
            self._exit.enter_context(redirect_stderr(cast(TextIO, _Aside(self, self._stderr))))
            self._begun = True
        if self._aside:
            self.write_aside("\n")
        self._fit()
        for character in self._printable(text):
            # A tab does not leave the margin, where it could lose the character before or after it.
            sent = " " if character == "\t" and self._cursor.may_wait_at_margin else character
            if not self._cursor.step(sent) and self._drawn:
                sys.stdout.flush()
                self._erase()
            sys.stdout.write(sent)
        sys.stdout.flush()
        if self._live and status:
            self._draw(status)

    def write_aside(self, text: str) -> None:
        """Write to stderr, on a row of its own."""
        self._fit()
        self._erase()
        started = self._aside or self._cursor.at_line_start
        self._stderr.write(text if started else "\n" + text)
        self._stderr.flush()
        self._aside = not text.endswith("\n")
        self._cursor.return_to_line_start()

    def _printable(self, text: str) -> str:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return printable(text.removesuffix(self._held))

    def _fit(self) -> None:
        """Notice that the terminal was resized."""
        columns, _ = _size()
        if columns in (0, self._columns):
            return
        self._columns = columns
        self._cursor.resize(columns)
        if self._drawn and self._cursor.may_have_been_put_at_margin():
            self._send(" \b")  # to the beginning of the next row: erasing at the margin would take a character away

    def _draw(self, status: str) -> None:
        columns, rows = _size()
        if columns != self._columns or columns < _MIN_COLUMNS or rows < _MIN_ROWS:
            return
        if self._cursor.may_wait_at_margin or self._cursor.may_be_combined:
            return
        if (self._drawn and time.monotonic() - self._drawn_at < _REDRAW) or _in_background(self._stderr):
            return
        self._drawn, self._drawn_at = True, time.monotonic()
        self._send(_TO_STATUS + dim(status[: columns - 1]) + _FROM_STATUS)

    def _erase(self) -> None:
        if self._drawn:
            self._send(_ERASE)
            self._drawn = False

    def _send(self, sequence: str) -> None:
        self._stderr.write(sequence)
        self._stderr.flush()

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # nobody else may
        for name in _ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._leave)
                self._exit.callback(signal.signal, number, signal.SIG_DFL)

    def _leave(self, number: int, _: FrameType | None) -> None:
        """Leave the terminal as it was found, and do what the signal would have done."""
        clean = (_ERASE if self._drawn else "") + ("" if self._cursor.at_line_start else "\n")
        os.write(self._stderr.fileno(), clean.encode())  # beneath the stream, which may be in the middle of a call
        self._drawn = False
        self._cursor.return_to_line_start()
        _show_typing(self._stderr, True)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Only a process that was stopped comes here, when it is continued.
        signal.signal(number, self._leave)
        _hide_typing(self._stderr)


class _Aside:
    """stderr while a text appears."""

    def __init__(self, text: LiveText, stderr: TextIO) -> None:
        self._text, self._stderr = text, stderr

    def write(self, text: str) -> int:
        if text:
            self._text.write_aside(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stderr, name)


def _size() -> tuple[int, int]:
    """Columns and rows of the terminal on stdout, from the environment if it does not know them; 0 if nobody does."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # ValueError: a stream without a descriptor
        return 0, 0
    return (columns, rows) if columns and rows else shutil.get_terminal_size((0, 0))


def _in_background(terminal: TextIO) -> bool:
    """Whether a shell on the terminal has given it to another job meanwhile."""
    if sys.platform == "win32":
        return False
    try:
        return os.tcgetpgrp(terminal.fileno()) != os.getpgrp()
    except OSError:  # not the terminal that controls this process
        return False


def _hide_typing(terminal: TextIO) -> bool:
    """Stop the terminal from showing what is typed, which would stand in the text; whether it showed it before.

    What is typed is not lost: whoever reads next gets it.
    """
    return _set_echo(terminal, False)


def _show_typing(terminal: TextIO, wanted: bool) -> None:
    """Let the terminal show what is typed, if ``wanted``."""
    if wanted:
        _set_echo(terminal, True)


def _set_echo(terminal: TextIO, echo: bool) -> bool:
    """Switch the echo on or off, of a terminal that belongs to this process; whether that changed it."""
    if sys.platform == "win32":
        return False
    import termios

    try:
        if os.tcgetpgrp(terminal.fileno()) != os.getpgrp():
            return False
        attributes = termios.tcgetattr(terminal.fileno())
        if bool(attributes[3] & termios.ECHO) == echo:
            return False
        attributes[3] ^= termios.ECHO
        termios.tcsetattr(terminal.fileno(), termios.TCSANOW, attributes)
    except (OSError, termios.error):
        return False
    return True
