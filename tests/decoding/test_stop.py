"""Stop strings: the shown text ends before the first one, however the text was cut into pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import StopStrings


def first_stop(text: str, strings: list[str]) -> str | None:
    """Text before the stop string that is complete first, character by character; ``None`` if there is none."""
    for end in range(1, len(text) + 1):
        complete = [s for s in strings if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return None


@settings(max_examples=500)
@given(
    pieces=st.lists(st.text("ab\n€", max_size=5), max_size=12),
    strings=st.lists(st.text("ab\n€", min_size=1, max_size=4), max_size=3),
)
def test_any_cut_gives_the_text_before_the_first_stop(pieces, strings):
    stop, text = StopStrings(strings), "".join(pieces)
    expected = first_stop(text, strings)
    shown = ""
    for piece in pieces:
        shown += stop.push(piece)
        assert (text if expected is None else expected).startswith(shown)
    assert stop.found == (expected is not None)
    shown += stop.flush()
    assert shown == (text if expected is None else expected)


@settings(max_examples=500)
@given(
    pieces=st.lists(st.tuples(st.text("ab<>", max_size=4), st.booleans()), max_size=10),
    strings=st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3),
)
def test_names_of_special_tokens_end_the_text_but_are_not_shown(pieces, strings):
    stop, whole = StopStrings(strings), "".join(text for text, _ in pieces)
    visible = [shown for text, shown in pieces for _ in text]
    before = first_stop(whole, strings)
    end = len(whole if before is None else before)
    expected = "".join(letter for letter, shown in zip(whole[:end], visible, strict=False) if shown)
    text = ""
    for piece, shown in pieces:
        text += stop.push(piece, shown=shown)
        assert expected.startswith(text)
    assert text + stop.flush() == expected
    assert stop.found == (before is not None)


def test_a_special_token_is_found_alone_and_among_text():
    stop = StopStrings(["<|end|>\n"])
    assert stop.push("yes") == "yes"
    assert stop.push("<|end|>", shown=False) == ""
    assert stop.push("no") == "no"
    assert stop.push("<|end|>", shown=False) == ""
    assert stop.push("\nmore") == ""
    assert stop.found


def test_only_a_possible_start_is_held_back():
    stop = StopStrings(["</end>", "\n\n"])
    assert stop.push("a < b") == "a < b"
    assert stop.push("</e") == ""
    assert stop.push("m>\n") == "</em>"
    assert stop.push("x\n") == "\nx"
    assert stop.push("\nlost") == ""
    assert stop.found
    assert stop.push("more") == stop.flush() == ""


def test_without_stop_strings_nothing_is_held():
    stop = StopStrings([])
    assert stop.push("text") == "text"
    assert not stop.found
