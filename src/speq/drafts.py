"""The names of what drafts, as the command line and the Python interface take them, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

DraftName: TypeAlias = Literal[
    "auto", "self", "ngram", "cascade", "head", "head-direct", "model", "model-direct", "none"
]

DRAFTS: tuple[DraftName, ...] = get_args(DraftName)

Helper: TypeAlias = Literal["head", "model"]
"""What proposes beside the model: a trained head, or another model."""

HELPERS: Mapping[DraftName, Helper] = {"head": "head", "head-direct": "head", "model": "model", "model-direct": "model"}
"""Drafts that need one. ``auto`` takes what there is."""

FREE_DRAFTS: tuple[DraftName, ...] = tuple(name for name in DRAFTS if name not in HELPERS)
"""Those that need nothing but the model."""

ONE_HELPER = "a draft head and a draft model exclude each other: give one of them"


_MISSING: Mapping[Helper, str] = {
    "head": "a trained head: give its directory with --draft-head (draft_head=)",
    "model": "another model: name one with --draft-model (draft_model=)",
}


def missing_helper(draft: str, given: Helper | None) -> str | None:
    """What is wrong with asking for a draft while this is given; ``None`` if nothing is."""
    needed = _needed(draft)
    return None if needed in (None, given) else f"the draft {draft} needs {_MISSING[needed]}"


def unused_helper(draft: str, given: Helper | None) -> str | None:
    """What is wrong with giving this for a draft that has no use for it; ``None`` if nothing is."""
    if given is None or draft == "auto" or _needed(draft) == given:
        return None
    return f"the draft {draft} has no use for a draft {given}: leave out --draft-{given}, or choose another draft"


def _needed(draft: str) -> Helper | None:
    return next((helper for name, helper in HELPERS.items() if name == draft), None)
