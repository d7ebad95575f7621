"""Commands on a terminal: status line, progress bars, Ctrl-C and chat."""

from __future__ import annotations

import os
import select
import signal
import time

# Every pass takes a while; and SIGINT interrupts, which a test run in the background inherits as ignored.
SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from speq.runtime.engine import Engine
run = Engine.run
Engine.run = lambda *a, **k: time.sleep(0.05) or run(*a, **k)
"""


def read_terminal(fd: int, until: bytes, seconds: float = 60) -> bytes:
    """Output of a terminal up to the first occurrence of ``until``, or its end."""
    seen, deadline = b"", time.monotonic() + seconds
    while until not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                seen += os.read(fd, 4096)
            except OSError:  # the other side is closed
                break
    return seen


def test_a_terminal_gets_a_status_line_and_a_summary(terminal, tiny_checkpoint):
    process, fd = terminal("generate", tiny_checkpoint, "-p", "hi", "-n", 40, "--threads", 1)
    shown = read_terminal(fd, b"never shown")
    assert process.wait(60) == 0
    assert b"\x1b[1;23r" in shown  # the last line is kept free,
    assert shown.index(b"\x1b[1;23r") < shown.rindex(b"\x1b[r")  # and given back
    assert b"40 tokens, first after" in shown
    assert b"tokens/s" in shown


def test_a_terminal_gets_progress_bars(terminal, tiny_checkpoint, tmp_path):
    process, fd = terminal("convert", tiny_checkpoint, tmp_path / "converted")
    shown = read_terminal(fd, b"never shown")
    assert process.wait(60) == 0
    assert b"converting" in shown
    assert b"bits each" in shown


def test_ctrl_c_on_a_terminal_ends_with_a_summary(terminal, tiny_checkpoint):
    process, fd = terminal("generate", tiny_checkpoint, "-p", "hi", "--threads", 1, before=SLOW)
    shown = read_terminal(fd, b"tokens/s")
    process.send_signal(signal.SIGINT)
    shown += read_terminal(fd, b"never shown")
    assert process.wait(60) == 130
    assert b"interrupted" in shown
    assert b"Traceback" not in shown


def test_chat_on_a_terminal_survives_an_error(terminal, tiny_checkpoint):
    process, fd = terminal("chat", tiny_checkpoint, "-n", 8, "--threads", 1)
    assert b"/exit" in read_terminal(fd, b"> ")
    os.write(fd, b"a" * 300 + b"\n")
    assert b"shorten the prompt; /new starts over" in read_terminal(fd, b"starts over")
    os.write(fd, b"hi\n")
    assert b"8 tokens" in read_terminal(fd, b"8 tokens")
    os.write(fd, b"/exit\n")
    read_terminal(fd, b"never shown")
    assert process.wait(60) == 0
