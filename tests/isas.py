"""What tests have to know of instruction sets."""

from __future__ import annotations

DRAFTS_SEVERAL_ROWS_APART = ("avx512bf16", "amx")
"""Those that draft several rows in another way than one: with BF16 dot products, and on tiles."""
