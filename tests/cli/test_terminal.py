"""Commands in a terminal of their own, from the keys that are typed to what is seen."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

# Every pass takes a while; and SIGINT interrupts, which a test run in the background inherits as ignored.
SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from speq.runtime.engine import Engine
run = Engine.run
Engine.run = lambda *a, **k: time.sleep(0.05) or run(*a, **k)
"""
# The twentieth pass fails.
FAILING = """
from speq.errors import SpeqError
from speq.runtime.engine import Engine
run, calls = Engine.run, []
def fail(*arguments, **options):
    calls.append(1)
    if len(calls) == 20:
        raise SpeqError("the logits are not finite")
    return run(*arguments, **options)
Engine.run = fail
"""
# Prompts have a progress bar from the first token on.
BARS = """
import time
from speq.serving.api import Model
stream = Model.stream
def with_bar(self, *arguments, progress, **options):
    running = stream(self, *arguments, progress=progress, **options)
    following = running._pieces
    def pieces():
        for done in range(1, 4):
            progress("prefill", done, 3)
            time.sleep(0.2)
        yield from following
    running._pieces = pieces()
    return running
Model.stream = with_bar
"""
# A process that runs the command as a job, as a shell does.
SHELL = """
import os, time
if child := os.fork():
    os.setpgid(child, child)
    os.tcsetpgrp(0, child)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
while os.tcgetpgrp(0) != os.getpid():
    time.sleep(0.01)
"""
SUMMARY = r"\d+ tokens, first after [\d.]+ s.*"


def as_shown(text):
    """Control characters as `cat -v` shows those of ASCII; the bytes of the tiny model are no valid UTF-8 otherwise."""
    text = text.replace("\r\n", "\n")
    text = re.sub("[\x80-\x9f]", lambda found: f"<U+{ord(found[0]):04X}>", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: "^" + chr(ord(found[0]) ^ 64), text)


def plainly(emulator, text, columns, lines=24):
    """The rows of a terminal that gets nothing but the text."""
    screen = emulator(columns, lines)
    screen.feed(as_shown(text).replace("\n", "\r\n").encode())
    return screen.rows


@pytest.mark.parametrize("columns", [40, 100])
def test_generate_shows_the_text_and_a_summary(terminal, emulator, tiny_checkpoint, truth, columns):
    process, window = terminal("generate", tiny_checkpoint, "-p", "hi", "-n", 30, "--threads", 1, columns=columns)
    rows = window.look(until="30 tokens, first")
    window.look(until="")
    assert process.wait(60) == 0
    text = plainly(emulator, truth.text, columns)
    rows = window.screen.rows
    assert rows[: len(text)] == text
    assert re.fullmatch(SUMMARY, "".join(rows[len(text) :]))
    assert not window.screen.cursor.hidden


def test_a_status_line_runs_along_and_what_is_typed_stays_out_of_the_text(terminal, emulator, tiny_checkpoint, truth):
    options = ("-p", "hi", "-n", 30, "--threads", 1)
    process, window = terminal("generate", tiny_checkpoint, *options, before=SLOW, NO_COLOR="1")
    assert window.echoes
    window.look(until="tokens/s")  # the summary has it too, but this is seen long before
    assert process.poll() is None
    assert not window.echoes
    window.type("something")
    window.look(until="30 tokens, first")
    assert process.wait(60) == 0
    window.look()
    assert window.echoes
    text = plainly(emulator, truth.text, 80)
    assert window.screen.rows[: len(text)] == text
    assert len(window.screen.rows) <= len(text) + 2


def test_a_terminal_gets_progress_bars_and_then_the_text_from_the_first_column(
    terminal, emulator, tiny_checkpoint, tmp_path, truth
):
    process, window = terminal("convert", tiny_checkpoint, tmp_path / "converted", before="import time\n", columns=200)
    window.look(until="bits each")
    assert process.wait(60) == 0
    for columns in (40, 100):
        options = ("-p", "hi", "-n", 30, "--threads", 1)
        process, window = terminal("generate", tiny_checkpoint, *options, before=BARS, columns=columns)
        window.look(until="prefill")
        window.look(until="30 tokens, first")
        assert process.wait(60) == 0
        window.look()
        text = plainly(emulator, truth.text, columns)
        assert window.screen.rows[: len(text)] == text


@pytest.mark.parametrize("size", [(5, 24), (80, 1), (80, 2)])
def test_a_tiny_terminal_shows_the_text(terminal, emulator, tiny_checkpoint, truth, size):
    options = ("-p", "hi", "-n", 30, "--threads", 1)
    process, window = terminal("generate", tiny_checkpoint, *options, before=BARS, columns=size[0], lines=size[1])
    window.look(until="")
    assert process.wait(60) == 0
    text = plainly(emulator, truth.text, *size)
    start = "".join(text)
    assert start in "".join(window.screen.rows)


def test_ctrl_c_keeps_the_text_and_ends_with_a_summary(terminal, emulator, tiny_checkpoint, truth):
    options = ("-p", "hi", "-n", 200, "--threads", 1, "--draft", "none")
    process, window = terminal("generate", tiny_checkpoint, *options, before=SLOW)
    window.look(until="tokens/s")
    window.type("\x03")
    rows = window.look(until="interrupted")
    assert process.wait(60) == 130
    count = int(re.search(r"(\d+) tokens, first", " ".join(rows))[1])
    import speq

    text = speq.load(tiny_checkpoint, threads=1).generate("hi", max_new_tokens=count, draft="none").text
    seen = "\n".join(rows[: next(number for number, row in enumerate(rows) if re.match(SUMMARY, row))])
    whole = "\n".join(plainly(emulator, text, 80))
    assert whole.startswith(seen)
    assert len(whole) - len(seen) <= 3  # the bytes of a character that was not complete
    assert "^C" not in "".join(rows)
    assert window.echoes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, -signal.SIGHUP)])
def test_a_process_that_is_killed_leaves_the_terminal_as_it_was(terminal, tiny_checkpoint, number, code):
    process, window = terminal("generate", tiny_checkpoint, "-p", "hi", "--threads", 1, before=SLOW)
    window.look(until="tokens/s")
    process.send_signal(number)
    assert process.wait(60) == code
    assert "tokens/s" not in "".join(window.look(until=""))
    assert window.screen.cursor.x == 0


def test_a_process_that_is_stopped_leaves_the_terminal_and_comes_back(terminal, tiny_checkpoint):
    options = ("-p", "hi", "-n", 60, "--threads", 1)
    process, window = terminal("generate", tiny_checkpoint, *options, before=SHELL + SLOW)
    window.look(until="tokens/s")
    window.type("\x1a")
    deadline = time.monotonic() + 30
    while not window.echoes and time.monotonic() < deadline:
        window.read(0.05)
    assert window.echoes
    window.look()
    assert "tokens/s" not in "".join(window.screen.rows)
    os.killpg(os.tcgetpgrp(window.fd), signal.SIGCONT)
    window.look(until="60 tokens, first")
    assert process.wait(60) == 0


def test_an_error_in_the_middle_stands_on_its_own_row(terminal, emulator, tiny_checkpoint, truth):
    options = ("-p", "hi", "-n", 30, "--threads", 1, "--draft", "none")
    process, window = terminal("generate", tiny_checkpoint, *options, before=FAILING)
    rows = window.look(until="not finite")
    assert process.wait(60) == 1
    assert rows[-1] == "speq: the logits are not finite"
    assert "\n".join(plainly(emulator, truth.text, 80)).startswith("\n".join(rows[:-1]).removesuffix("\n"))


def test_chat_shows_each_answer_after_the_line_that_asked(terminal, emulator, tiny_checkpoint):
    import speq

    process, window = terminal("chat", tiny_checkpoint, "-n", 30, "--threads", 1, columns=100)
    window.look(until=">")
    model, messages, expected = speq.load(tiny_checkpoint, threads=1), [], []
    for question in ("hi", "and?"):
        start = len(window.screen.rows) - 1
        messages.append({"role": "user", "content": question})
        answer = model.generate(messages, max_new_tokens=30, draft="none").text
        messages.append({"role": "assistant", "content": answer})
        expected = plainly(emulator, answer, 100)
        window.type(question + "\n")
        deadline = time.monotonic() + 60
        while (len(rows := window.screen.rows[start:]) < 3 or rows[-1] != ">") and time.monotonic() < deadline:
            window.read(0.1)
        assert rows[0] == f"> {question}"
        assert rows[1 : 1 + len(expected)] == expected
        assert re.fullmatch(SUMMARY, rows[-2])
    window.type("\x04")
    window.look(until="")
    assert process.wait(60) == 0
    assert window.screen.cursor.x == 0


def test_chat_survives_an_error_and_ctrl_c(terminal, tiny_checkpoint):
    process, window = terminal("chat", tiny_checkpoint, "-n", 100, "--threads", 1, before=SLOW)
    window.look(until=">")
    window.type("a" * 300 + "\n")
    window.look(until="/new starts over")
    window.type("hi\n")
    window.look(until="tokens/s")
    window.type("\x03")
    window.look(until="interrupted")
    deadline = time.monotonic() + 60
    while window.screen.rows[-1] != ">" and time.monotonic() < deadline:
        window.read(0.1)
    window.type("\x03")
    window.look(until="speq: interrupted")
    assert process.wait(60) == 130
    assert window.screen.rows[-1] == "speq: interrupted"


@pytest.mark.parametrize("redirected", ["stdout", "stderr"])
def test_half_a_terminal(terminal, emulator, tiny_checkpoint, truth, tmp_path, redirected):
    with open(tmp_path / "file", "wb") as file:
        options = ("-p", "hi", "-n", 30, "--threads", 1)
        process, window = terminal("generate", tiny_checkpoint, *options, **{redirected: file})
        window.look(until="")
        assert process.wait(60) == 0
    content = (tmp_path / "file").read_bytes().decode()
    if redirected == "stdout":
        assert content.removesuffix("\n") == truth.text.removesuffix("\n")
        assert window.screen.rows == []
    else:
        assert content == ""
        assert window.screen.rows == plainly(emulator, truth.text, 80)


def test_ids_of_a_model_without_a_tokenizer(terminal, speq_run, write_checkpoint, tmp_path):
    path = write_checkpoint(tmp_path / "bare", tokenizer=False)
    options = ("generate", path, "--ids", "1 2 3", "-n", 40, "--threads", 1)
    ids = speq_run(*options)[1].split()
    process, window = terminal(*options, columns=40)
    rows = window.look(until="40 tokens, first")
    assert process.wait(60) == 0
    assert "".join(row.ljust(40) for row in rows).split()[: len(ids)] == ids
