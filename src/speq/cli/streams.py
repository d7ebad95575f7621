"""The standard streams, any of which may be closed, full or without a reader."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from speq.errors import SpeqError


class _Stderr(io.TextIOWrapper):
    """stderr, whose own failures there is no place to report."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            return


class _Stdout(io.TextIOWrapper):
    """stdout, whose failures are told from those of other files; that nobody reads on is none (BrokenPipeError)."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _cannot_write(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _cannot_write(error) from None


def open_streams() -> None:
    """Make the streams of this process safe to use; a closed stdin or stdout stays None, as Python has it.

    A closed descriptor would become that of the next file that is opened, and what a library prints would go there.
    """
    for descriptor, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None and not _is_open(descriptor):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which gets the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        by_line, at_once = sys.stdout.line_buffering, sys.stdout.write_through
        sys.stdout = _Stdout(sys.stdout.buffer, "utf-8", "replace", line_buffering=by_line, write_through=at_once)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    elif isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Stderr(sys.stderr.buffer, "utf-8", "replace", line_buffering=True)


def stdin() -> TextIO:
    """stdin.

    Raises:
        SpeqError: it is closed.
    """
    if sys.stdin is None:
        raise SpeqError("stdin is closed: there is nothing to read from it")
    return sys.stdin


def flush_stdout() -> None:
    """Write what is left for stdout; if that fails, it goes nowhere, so that Python does not fail again at its exit.

    Raises:
        SpeqError: stdout does not take it.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except SpeqError:
        _discard_stdout()
        raise


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cannot_write(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return error
    return SpeqError(f"cannot write to stdout: {(error.strerror or str(error)).lower()}")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
