"""The names of what drafts, as the command line and the Python interface take them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

DraftName: TypeAlias = Literal["auto", "self", "ngram", "cascade", "head", "none"]

DRAFTS: tuple[DraftName, ...] = get_args(DraftName)

FREE_DRAFTS: tuple[DraftName, ...] = tuple(name for name in DRAFTS if name != "head")
"""Those that need nothing but the model."""
