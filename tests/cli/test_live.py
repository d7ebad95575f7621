"""What a person sees while a text appears: the bytes for a pseudo-terminal, in an emulator, against the text itself."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speq.terminal import live
from speq.terminal.output import note

STATUS = "12 tokens, first after 0.10 s, 30.0 tokens/s"


@contextmanager
def streams_to(window):
    """stdout and stderr of this process in a window, where the status is drawn with every piece."""
    streams = [open(os.dup(window.theirs), "w", encoding="utf-8", errors="replace") for _ in range(2)]  # noqa: SIM115
    with (
        patch.object(sys, "stdout", streams[0]),
        patch.object(sys, "stderr", streams[1]),
        patch.object(live, "_REDRAW", 0),
        patch.dict(os.environ, {"TERM": "xterm", "LC_ALL": "C.UTF-8"}),
    ):
        yield
    for stream in streams:
        stream.close()


def show(window, pieces):
    """Show pieces of text; a pair of numbers resizes the window. Returns how often the status was seen."""
    seen = 0
    with streams_to(window), live.LiveText() as shown:
        for piece in pieces:
            if isinstance(piece, tuple):
                window.resize(*piece)
            else:
                shown.write(piece, STATUS)
                window.catch_up()
                seen += window.screen.shows("12 tokens")
    window.catch_up()
    return seen


def plainly(emulator, size, pieces):
    """The rows of a terminal that gets nothing but the text."""
    screen = emulator(*size)
    for piece in pieces:
        if isinstance(piece, tuple):
            screen.resize(piece[1], piece[0])
        else:
            screen.feed(piece.replace("\n", "\r\n").encode())
    return screen.rows


def chopped(text, size=3):
    return [text[i : i + size] for i in range(0, len(text), size)]


RIVERS = "1. Danube\n2. Rhine\n\n3. Volga, which is the longest of them, and the one with the largest basin of all.\n"


@pytest.mark.parametrize("size", [(40, 24), (100, 24), (40, 5), (5, 10), (80, 2), (80, 1), (1, 1)])
@pytest.mark.parametrize(
    "text",
    [
        RIVERS,
        RIVERS * 8 + "no line feed at the end",
        "x" * 400,
        "\n\nafter two empty lines\n\n\n",
        "中文字符很宽。" * 40 + "a" + "日本語" * 30,
        "ภาษาไทยมีวรรณยุกต์ที่ซ้อนกัน " * 20,
        "😀👍🏽👩‍👩‍👧 🇩🇪 ❤️ 1️⃣ — “quoted” … " * 20,
    ],
)
def test_every_character_is_seen_once(window, emulator, size, text):
    seen, statuses = plainly(emulator, size, [text]), 0
    for length in (1, 4, 50):
        made = window(*size)
        statuses += show(made, chopped(text, length))
        assert made.screen.rows == seen
    assert (statuses > 0) == (size[0] >= 40 and size[1] >= 3)


characters = st.one_of(
    st.sampled_from("ab \n中😀é—д"),
    st.sampled_from(["ก็", "❤️", "👩‍👧", "👍🏽", "\u0301", "क्ष"]),
    st.text("abcdefgh", min_size=17, max_size=45),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.lists(characters, min_size=1, max_size=5).map("".join), max_size=30),
    size=st.tuples(st.integers(20, 50), st.integers(1, 8)),
)
def test_any_text_in_any_pieces_is_seen_as_without_a_status_line(window, emulator, pieces, size):
    # A mark on a letter that is usually one character with it comes in the same piece.
    pieces = re.findall(r"(?s)\x00\W*[^\x00]*", "\x00".join(["", *pieces]).replace("\x00\u0301", "\u0301\x00"))
    pieces = [piece.replace("\x00", "") for piece in pieces]
    made = window(*size)
    show(made, pieces)
    assert made.screen.rows == plainly(emulator, size, pieces)
    made.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.text("ab c\n", max_size=30), st.tuples(st.integers(20, 60), st.just(10)), st.sampled_from(["中文", "\n"])
        ),
        max_size=40,
    )
)
def test_a_window_that_is_resized_meanwhile_shows_the_same_text(window, emulator, pieces):
    made = window(40, 10)
    show(made, pieces)
    assert made.screen.rows == plainly(emulator, (40, 10), pieces)
    made.close()


def test_the_status_comes_back_after_a_resize(window, emulator):
    made = window(100, 10)
    assert show(made, [*chopped(RIVERS), (40, 10), *chopped(RIVERS)]) > len(RIVERS) / 3
    assert show(made, [*chopped(RIVERS * 2)]) > len(RIVERS) / 3
    assert made.screen.rows == plainly(emulator, (100, 10), [RIVERS, (40, 10), RIVERS * 3])


def test_tabs_reach_their_stops_and_lose_nothing_at_the_margin(window, emulator):
    made = window(40, 10)
    show(made, chopped("\tif x:\n\t\treturn\ty\n"))
    assert made.screen.rows == ["        if x:", "                return  y"]
    for length in range(30, 45):
        made = window(40, 10)
        show(made, [*chopped("x" * length), "\t", "y", "z"])
        assert re.sub(r"\s", "", "".join(made.screen.rows)) == "x" * length + "yz"


def test_a_text_cannot_drive_the_terminal(window):
    made = window(80, 10)
    show(made, ["above\n", "\x1b", "[2J\x1b[1;1H", "\x9b31m", "a\bb", "\x1b]0;title\x07", "one\r", "\ntwo\rthree\x7f"])
    assert made.screen.rows == ["above", "^[[2J^[[1;1H<U+009B>31ma^Hb^[]0;title^Gone", "two^Mthree^?"]
    assert made.screen.title != "title"


def test_what_is_said_meanwhile_has_its_own_row(window):
    made = window(60, 10)
    with streams_to(made), live.LiveText() as shown:
        shown.write("Some te", STATUS)
        note("something happened")
        shown.write("xt\n", STATUS)
        note("and again")
        shown.write("end", STATUS)
    made.catch_up()
    assert made.screen.rows == ["Some te", "note: something happened", "xt", "note: and again", "end"]


def test_stdout_gets_exactly_the_text_where_the_terminal_is_only_on_stderr(window, tmp_path):
    made, text = window(60, 10), "a\r\nb\x1b[31m\tc\x00 中 no end"
    out = open(tmp_path / "out", "w", encoding="utf-8", newline="")  # noqa: SIM115
    with streams_to(made), patch.object(sys, "stdout", out), live.LiveText() as shown:
        for piece in chopped(text):
            shown.write(piece, STATUS)
    out.close()
    made.catch_up()
    assert (tmp_path / "out").read_bytes() == text.encode()
    assert made.screen.rows == []


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {}])
def test_a_terminal_gets_no_sequence_that_it_does_not_want(window, variables):
    made = window(60, 10)
    with streams_to(made), patch.dict(os.environ, variables), live.LiveText() as shown:
        shown.write("some text\n", STATUS)
        shown.write("\x1b[31m", STATUS)
    os.write(made.theirs, b"END")
    sent = b""
    while not sent.endswith(b"END"):
        sent += os.read(made.fd, 65536)
    sent = sent.removesuffix(b"END")
    assert (b"\x1b" in sent) == (variables != {"TERM": "dumb"})
    assert (b"\x1b[2m" in sent) == (variables == {})
    sequences = rb"\x1b[78D]|\x1b\[[ABJK]|\r?12 tokens[^\x1b]*|\r(?!\n)|\x1b\[[02]m|\x1b\[\?7[hl]"
    assert re.sub(sequences, b"", sent) == b"some text\r\n^[[31m"


def test_no_line_that_quotes_a_file_drives_the_terminal(capsys):
    from speq.cli import run
    from speq.terminal.output import json_line

    assert run(["generate", "no\x9b31m\x1b[2Jsuch", "-p", "a"]) == 1
    note("a tensor named \x1b[2J")
    assert not set(capsys.readouterr().err) & set("\x1b\x9b")
    value = {"text": "\x1b[2J\x7f\x9b31m é"}
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in json_line(value))
    assert json.loads(json_line(value)) == value
