"""Draws the recording of README.md: a program runs on a terminal of its own, and the screen at its end becomes an SVG.

    python benchmarks/record.py OUT.svg COMMAND ...
    make recording

The program sees a real terminal of 120 columns; nothing of what it prints is changed. What it writes only while it
works, such as progress bars, is gone at its end, as it would be on any terminal.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 120, 60
WIDEST = 200_000  # bytes of the picture


def recorded(command: list[str]) -> pyte.Screen:
    """The screen of a terminal on which ``command`` has run."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as program:
        os.close(child)
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # the last program on the terminal has ended
                break
            if not part:
                break
            stream.feed(part)
    os.close(parent)
    if program.returncode:
        sys.exit(f"{shlex.join(command)} ended with {program.returncode}:\n" + "\n".join(screen.display).rstrip())
    return screen


def _colour(name: str) -> str | None:
    """A colour of the terminal as rich calls it: a name, or six hexadecimal digits."""
    if len(name) == 6 and set(name) <= set("0123456789abcdef"):
        return f"#{name}"
    return {"default": None, "brown": "yellow"}.get(name, name.replace("bright", "bright_"))


def drawn(screen: pyte.Screen, title: str, typed: str) -> str:
    """The screen as an SVG, up to its last line that is not empty, with the command before it."""
    columns = max(60, len(typed) + 2, *(len(line.rstrip()) for line in screen.display))
    console = Console(record=True, width=columns, file=io.StringIO(), highlight=False, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), (typed, "bold")))
    last = max((row for row, line in enumerate(screen.display) if line.strip()), default=-1)
    for row in range(last + 1):
        text = Text()
        cells = [screen.buffer[row][column] for column in range(columns)]
        for (colour, bold), part in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
            text.append("".join(cell.data for cell in part), Style(color=_colour(colour), bold=bold))
        text.rstrip()
        console.print(text)
    return console.export_svg(title=title)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: python benchmarks/record.py OUT.svg COMMAND ...")
    out, command = Path(sys.argv[1]), sys.argv[2:]
    typed = shlex.join([Path(command[0]).name, *command[1:]])
    picture = drawn(recorded(command), "speq", typed)
    if len(picture.encode()) > WIDEST:
        sys.exit(f"the picture has more than {WIDEST} bytes: record less")
    out.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
