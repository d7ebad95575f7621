"""Where the cursor of a terminal stands after a text, as far as that can be known.

Terminals disagree about the width of some characters, so several places are possible. A terminal puts a character that
no longer fits on the next row; after one that just fits, the cursor waits at the right margin, and forgets that it
waits when it is moved: the next character would then overwrite the last one of the row.
"""

from __future__ import annotations

import os
import unicodedata

_TAB = 8  # columns between tab stops
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
_COMBINED = 12  # columns by which what follows may widen a character, as in an emoji of a family
_VIRAMA = 9  # the combining class of signs that join two consonants
_MOST_PLACES = 200  # beyond these nothing is known of use


class Cursor:
    """Follows the cursor through the printable characters, tabs and line feeds of a text.

    Args:
        columns: of the terminal.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        # Cells from the beginning of the line, be it one row or several; and whether the rows' width never changed.
        self._places, self._known = frozenset([0]), True
        self._last = "\n"

    @property
    def at_line_start(self) -> bool:
        return self._places == {0}

    @property
    def may_wait_at_margin(self) -> bool:
        """Whether moving the cursor away and back might lose a character."""
        return not self._known or self.may_have_been_put_at_margin()

    @property
    def may_be_combined(self) -> bool:
        """Whether the next character might change the last one, which some terminals only do in direct succession."""
        kind = unicodedata.category(self._last)
        wide = unicodedata.east_asian_width(self._last) == "W"
        return not (kind[0] in "ZPC" or kind in ("Lu", "Ll", "Sm", "Sc") or (kind == "Lo" and wide))

    def step(self, character: str) -> bool:
        """Go past a character; ``False`` if that, or what may be combined with it, may have led to another row."""
        if character == "\n":
            self._places, self._known, self._last = frozenset([0]), True, character
            return False
        before, spare = self._places, 0
        if character == "\t":
            self._places = frozenset(map(self._tab_stop, before))
        else:
            widths = _widths(character, self._last)
            self._places = frozenset(self._after(place, width) for place in before for width in widths)
            spare = 0 if 0 in widths else _COMBINED  # what is combined with another counts there
        self._last = character
        if len(self._places) > _MOST_PLACES:
            self._places, self._known = frozenset(sorted(self._places)[:1]), False
        # A place at the margin counts for the next row here, because that is where the next character goes.
        reached = before | {place + spare * self.may_be_combined for place in self._places}
        return self._known and len({place // self._columns for place in reached}) == 1

    def resize(self, columns: int) -> None:
        """The terminal was made ``columns`` wide; whether its text was broken into new rows is for it to decide."""
        self._columns, self._known = columns, self.at_line_start

    def return_to_line_start(self) -> None:
        """Something else was written, and left the cursor at the beginning of a row."""
        self.step("\n")

    def may_have_been_put_at_margin(self) -> bool:
        """After ``resize``: whether a terminal that broke the line again may have left the cursor waiting."""
        return any(place and place % self._columns == 0 for place in self._places)

    def _after(self, place: int, width: int) -> int:
        skipped = width == 2 and place % self._columns == self._columns - 1  # half a character does not fit
        return place + width + skipped

    def _tab_stop(self, place: int) -> int:
        column = place % self._columns
        return place - column + min(column - column % _TAB + _TAB, self._columns - 1)


def _widths(character: str, previous: str) -> tuple[int, ...]:
    """The columns that a character may take after ``previous``, in one terminal or another."""
    if " " <= character <= "~":
        return (1,)
    kind, east_asian = unicodedata.category(character), unicodedata.east_asian_width(character)
    if kind in ("Mn", "Me"):
        return (0, 1) if character == _EMOJI_STYLE else (0,)
    if kind in ("Mc", "Cf", "Zl", "Zp") or "\u1160" <= character <= "\u11ff":  # the latter are parts of a syllable
        return (0, 1)
    if kind in ("Cn", "Co", "Cs") or "\U0001f1e6" <= character <= "\U0001f1ff":  # two of the latter are a flag
        return (0, 1, 2)
    joined = previous == _JOINER or unicodedata.combining(previous) == _VIRAMA or kind == "Sk"
    if east_asian in "WF":
        return (0, 2) if joined else (2,)
    if east_asian == "A" and _is_east_asian_locale():
        return (1, 2)
    return (0, 1) if joined else (1,)


def _is_east_asian_locale() -> bool:
    """Whether the terminal may show characters that are narrow elsewhere, as Greek ones are, in two columns."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return next((name for name in names if name), "")[:2] in ("zh", "ja", "ko")
