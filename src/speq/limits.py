"""What passes and texts take at most; every limit is stated here alone."""

from __future__ import annotations

PAGE = 256
"""Positions in a page of the KV cache: as many as attention takes at a time, so that paging changes no sum."""

BATCH_ROWS = 256
"""Most tokens of a batch."""

QUICK_ROWS = 16
"""Most tokens of a batch that costs little more than one token: what the kernels treat as few."""

TREE_ROWS = 64
"""Most rows of a span that is no chain."""

LONGEST_DRAFT = 16
"""Most tokens that a caller may ask to draft in each round."""

MOST_CHECKED = 7
"""Most tokens of a first stage that a draft pass checks."""

SEQUENCES = 16
"""Texts that are generated at once unless the caller says otherwise; more of them wait."""

MOST_LIKELY = 8
"""Of so many of the most probable tokens a draw can tell."""
