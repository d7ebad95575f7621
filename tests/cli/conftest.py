"""Running the command line on a tiny real model, in this process or on a terminal of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

import speq
from speq.cli import run

MAIN = "from speq.cli import main; main()"


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


@pytest.fixture
def terminal(command, tiny_checkpoint, truth):
    """Start a command on a terminal of its own; returns the process and the terminal's file descriptor."""
    pty = pytest.importorskip("pty")
    opened = []

    def start(*arguments, before=""):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "LINES": "24", "COLUMNS": "80"}
        process = subprocess.Popen(
            command(*arguments, before=before), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        opened.append((process, ours))
        return process, ours

    yield start
    for process, ours in opened:
        process.kill()
        process.wait()
        os.close(ours)
