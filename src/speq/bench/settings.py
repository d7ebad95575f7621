"""What drafts, as measurements name it: one of speq's drafts, or one with a fixed length, as in ``self:7``."""

from __future__ import annotations

from dataclasses import dataclass

from speq.drafts import FREE_DRAFTS, DraftName
from speq.errors import SpeqError
from speq.limits import LONGEST_DRAFT

SETTING = f"NAME[:K], NAME one of {', '.join(FREE_DRAFTS)}, K tokens to draft each round, 1 to {LONGEST_DRAFT}"


@dataclass(frozen=True)
class Setting:
    """A draft and how many tokens it drafts each round; ``None`` leaves the length to the policy."""

    draft: DraftName
    length: int | None = None

    def __str__(self) -> str:
        return self.draft if self.length is None else f"{self.draft}:{self.length}"


def parse_setting(text: str) -> Setting:
    """A setting from its name.

    Raises:
        SpeqError: there is no such draft, or the length is out of range.
    """
    name, colon, length = text.partition(":")
    if name not in FREE_DRAFTS:
        raise SpeqError(f"{text!r} is no draft setting: give {SETTING}")
    if not colon:
        return Setting(name)
    if name == "none" or not (length.isascii() and length.isdigit() and 1 <= int(length) <= LONGEST_DRAFT):
        raise SpeqError(f"{text!r} is no draft setting: give {SETTING}" + ("; none has no K" if name == "none" else ""))
    return Setting(name, int(length))
