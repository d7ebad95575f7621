"""What drafts, as measurements name it: one of speq's drafts, or one with a fixed length, as in ``self:7``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speq.drafts import FREE_DRAFTS, DraftName
from speq.errors import SpeqError
from speq.limits import LONGEST_DRAFT


@dataclass(frozen=True)
class Setting:
    """A draft and how many tokens it drafts each round; ``None`` leaves the length to the policy."""

    draft: DraftName
    length: int | None = None

    def __str__(self) -> str:
        return self.draft if self.length is None else f"{self.draft}:{self.length}"


def parse_setting(text: str, drafts: Sequence[DraftName] = FREE_DRAFTS) -> Setting:
    """A setting from its name, its draft one of these.

    Raises:
        SpeqError: there is no such draft, or the length is out of range.
    """
    name, colon, length = text.partition(":")
    draft = next((each for each in drafts if each == name), None)
    if draft and not colon:
        return Setting(draft)
    if draft and draft != "none" and length.isascii() and length.isdigit() and 1 <= int(length) <= LONGEST_DRAFT:
        return Setting(draft, int(length))
    raise SpeqError(
        f"{text!r} is no draft setting: give NAME[:K], NAME one of {', '.join(drafts)}, K tokens to draft each round, "
        f"1 to {LONGEST_DRAFT}" + ("; none has no K" if draft == "none" else "")
    )
