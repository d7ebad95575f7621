"""What a generation drafted, accepted and took: plain counts and seconds, with the rates that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "interrupted"]


@dataclass
class Statistics:
    """Counts of one generation. A round is one verify pass with the draft before it; the prefill is not a round.

    Attributes:
        prompt_tokens: tokens of the prompt, cached or not.
        new_tokens: tokens produced; the first one comes from the prefill, the others from rounds.
        finish_reason: ``stop`` (end token or stop string), ``length`` (token or context limit) or ``interrupted``.
        prefill_seconds: from the start to the first token.
        decode_seconds: all steps since; the caller's own time between tokens is not counted.
        draft_seconds, verify_seconds: the passes among these that the sequence took part in.
        rounds, drafted, accepted: verify passes, tokens proposed, and those of them that were right.
        accepted_per_position: ``[i]`` counts the rounds whose drafted token ``i`` was accepted.
        seed: the seed of the noise; ``None`` for greedy decoding.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    finish_reason: FinishReason = "interrupted"
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    seed: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the generation came to its own end."""
        return self.finish_reason != "interrupted"

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_round(self) -> float:
        """Tokens a verify pass yields; 0 before the first round."""
        return (self.new_tokens - 1) / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first one over ``decode_seconds``; 0 before the first round."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def add_round(self, drafted: int, accepted: int, deepest: int | None = None) -> None:
        """Count one round, but for its seconds; ``deepest`` is the length of a tree's main line."""
        length = max(accepted, drafted if deepest is None else deepest)
        self.rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        self.accepted_per_position += [0] * (length - len(self.accepted_per_position))
        for position in range(accepted):
            self.accepted_per_position[position] += 1
