"""Standard streams that are closed, full or without a reader, as the shell makes them, and signals."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


@pytest.fixture
def shell(command):
    """Run speq as a shell does, with redirections; returns (exit code, stdout, stderr)."""

    def call(*arguments, redirect="", unbuffered=False, **options):
        line = f"{shlex.join(command(*arguments))} {redirect}"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            env=environment,
            check=False,
            **options,
        )
        return done.returncode, done.stdout, done.stderr

    return call


CLOSED = "speq: stdout is closed: open it, or send the output to a file or to /dev/null\n"
FULL = "speq: cannot write to stdout: no space left on device\n"


@pytest.mark.parametrize("verb", ["generate", "json", "inspect", "chat", "--version", "--help", "convert"])
def test_stdout_that_takes_nothing(shell, tiny_checkpoint, tmp_path, verb):
    arguments = {
        "generate": ["generate", tiny_checkpoint, "-p", "hi", "-n", 3],
        "json": ["generate", tiny_checkpoint, "-p", "hi", "-n", 3, "--json"],
        "convert": ["convert", tiny_checkpoint, tmp_path / "converted"],
        "chat": ["chat", tiny_checkpoint, "-n", 3],
        "inspect": ["inspect", tiny_checkpoint],
    }.get(verb, [verb])
    asked = "<<< hello" if verb == "chat" else ""
    assert shell(*arguments, redirect=f"{asked} >&-") == (1, "", CLOSED)
    assert not (tmp_path / "converted").exists()
    if os.path.exists("/dev/full"):
        assert shell(*arguments, redirect=f"{asked} >/dev/full") == (1, "", FULL)
        if verb in ("json", "--version"):
            assert shell(*arguments, redirect=f"{asked} >/dev/full", unbuffered=True) == (1, "", FULL)
    assert shell(*arguments, redirect=f"{asked} | true")[::2] == (0, "")


def test_stderr_that_takes_nothing(shell, tiny_checkpoint, truth):
    good = ("generate", tiny_checkpoint, "-p", "hi", "-n", 30, "--draft", "none")
    bad = ("generate", tiny_checkpoint, "--ids", 999)
    for redirect in ("2>&-", "2>/dev/full"):
        code, out, err = shell(*good, redirect=redirect)
        assert (code, out.removesuffix("\n"), err) == (0, truth.text.removesuffix("\n"), "")
        assert shell(*bad, redirect=redirect) == (1, "", "")
        assert shell("nothing", redirect=redirect) == (2, "", "")
    assert shell(*bad, redirect="2>&1 >/dev/null | true") == (1, "", "")
    assert shell(*good, redirect="<&- >&- 2>&-") == (1, "", "")


def test_a_file_does_not_take_the_place_of_a_closed_stream(shell, tiny_checkpoint, tmp_path):
    """What is printed would end up in the file that got the number of stderr."""
    code, _, _ = shell("convert", tiny_checkpoint, tmp_path / "one", redirect="<&- 2>&-")
    assert code == 0
    assert shell("convert", tiny_checkpoint, tmp_path / "two")[0] == 0
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_stdin_that_gives_nothing(shell, tiny_checkpoint):
    closed = "speq: stdin is closed: there is nothing to read from it\n"
    assert shell("chat", tiny_checkpoint, redirect="<&-") == (1, "", closed)
    assert shell("generate", tiny_checkpoint, "-f", "-", redirect="<&-") == (1, "", closed)
    assert shell("chat", tiny_checkpoint, redirect="</dev/null") == (0, "", "")
    assert shell("generate", tiny_checkpoint, "-p", "hi", "-n", 3, redirect="<&-")[::2] == (0, "")


@pytest.mark.parametrize(("number", "code", "line"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "")])
def test_signals_end_a_generation_in_order(command, tiny_checkpoint, number, code, line):
    slow = (
        "import time; from speq.runtime.engine import Engine; f = Engine.run\n"
        "Engine.run = lambda *a, **o: (time.sleep(0.05), f(*a, **o))[1]\n"
    )
    arguments = ("generate", tiny_checkpoint, "-p", "hi", "-n", 200, "--draft", "none", "--threads", 1)
    process = subprocess.Popen(command(*arguments, before=slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shown = process.stdout.read(1)
    process.send_signal(number)
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (code, f"speq: {line}\n" if line else "")
    assert (shown + rest).endswith(b"\n")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_end_a_load_in_order(command, tiny_checkpoint, number, code, word):
    slow = (
        "import time, speq.conversion.locate as l\n"
        "def wait(*a, **o):\n    print(1, flush=True); time.sleep(60)\n"
        "l.converted_model = wait\n"
    )
    process = subprocess.Popen(
        command("generate", tiny_checkpoint, "-p", "hi", before=slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(2)
    begun = time.monotonic()
    process.send_signal(number)
    assert process.communicate(timeout=60)[1].decode() == f"speq: {word}\n"
    assert process.returncode == code
    assert time.monotonic() - begun < 30


def test_a_limit_of_one_thread(shell, tiny_checkpoint, truth, tmp_path):
    """As a process limit has it; here each thread would need more addresses than there are."""
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("the stack is limited here")

    def limited(*arguments):
        return shell(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (1 << 47, hard)))

    code, out, err = limited("generate", tiny_checkpoint, "-p", "hi", "-n", 30, "--draft", "none", "--threads", 1)
    assert (code, out.removesuffix("\n"), err) == (0, truth.text.removesuffix("\n"), "")
    code, out, err = limited("generate", tiny_checkpoint, "-p", "hi", "--threads", 3)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("speq: only 1 of 3 threads could be started")
    assert "use fewer with --threads" in err
    assert limited("inspect", tiny_checkpoint)[::2] == (0, "")
    assert limited("convert", tiny_checkpoint, tmp_path / "converted", "--threads", 1)[::2] == (0, "")


def test_absurd_numbers_of_threads_are_refused_before_anything_is_loaded(speq_run, tmp_path):
    for verb in (
        ["generate", "-p", "a"],
        ["chat"],
        ["convert", tmp_path / "to"],
        ["train-head", "a"],
        ["bench", "kernels"],
    ):
        for threads in ("100000", "99999999999999999999", "0", "-1", "two"):
            code, out, err = speq_run(*verb[:2], *verb[2:], "missing", "--threads", threads)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert "'--threads'" in err


def test_progress_needs_no_thread(monkeypatch):
    from speq.terminal.output import ProgressBars

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBars() as progress:
        for done in range(0, 101, 10):
            progress("converting", done, 100)
    assert "100 of 100" in sys.stderr.getvalue()
