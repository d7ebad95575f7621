"""What a generation gives back, in Python and as the JSON object of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speq.decoding.stats import Statistics


@dataclass(frozen=True)
class Result:
    """A finished (or interrupted) generation. ``text`` is empty for a model without a tokenizer."""

    text: str
    token_ids: list[int]
    stats: Statistics
    draft: str
    model: str
    format: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """The object that ``speq generate --json`` prints; its fields are a stable interface."""
        stats = self.stats
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "prompt_tokens": stats.prompt_tokens,
            "new_tokens": stats.new_tokens,
            "finish_reason": stats.finish_reason,
            "prefill_seconds": stats.prefill_seconds,
            "decode_seconds": stats.decode_seconds,
            "tokens_per_second": stats.tokens_per_second,
            "draft": self.draft,
            "rounds": stats.rounds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "acceptance_rate": stats.acceptance_rate,
            "tokens_per_round": stats.tokens_per_round,
            "accepted_per_position": stats.accepted_per_position,
            "draft_seconds": stats.draft_seconds,
            "verify_seconds": stats.verify_seconds,
            "seed": stats.seed,
            "model": self.model,
            "format": self.format,
            "threads": self.threads,
        }
