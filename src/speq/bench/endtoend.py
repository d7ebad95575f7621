"""Plain against speculative decoding, end to end over prompts: they alternate, and the token ids must be the same."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from speq.bench.machine import read_bandwidth
from speq.bench.programs import plane_bytes, products
from speq.bench.prompts import Prompt
from speq.graph.step import Weights
from speq.models.config import ModelConfig
from speq.serving.api import Model


@dataclass(frozen=True)
class PromptRow:
    """One prompt: decoding speed of both in tokens per second, and how well the draft did."""

    prompt: str
    new_tokens: int
    plain_rate: float
    speculative_rate: float
    acceptance_rate: float
    tokens_per_round: float
    same: bool

    @property
    def speed_up(self) -> float:
        return self.speculative_rate / self.plain_rate


@dataclass
class EndToEnd:
    """All prompts, and the read bandwidth in bytes per second before and after each of them."""

    bytes_per_token: int
    rows: list[PromptRow] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)

    @property
    def plain_rate(self) -> float:
        """Median tokens per second."""
        return statistics.median(row.plain_rate for row in self.rows)

    @property
    def speculative_rate(self) -> float:
        return statistics.median(row.speculative_rate for row in self.rows)

    @property
    def bandwidth(self) -> float:
        return statistics.median(self.bandwidths)

    @property
    def bandwidth_share(self) -> float:
        """Plain decoding over what the measured bandwidth allows, if a token read the weights and nothing else."""
        return self.plain_rate * self.bytes_per_token / self.bandwidth

    @property
    def speed_up(self) -> float:
        """Geometric mean of the prompts' speed-ups."""
        return statistics.geometric_mean(row.speed_up for row in self.rows)

    @property
    def differing(self) -> int:
        """Prompts whose ids differ."""
        return sum(not row.same for row in self.rows)


def measure_end_to_end(
    model: Model,
    prompts: Sequence[Prompt],
    bytes_per_token: int,
    *,
    new_tokens: int = 128,
    draft: Literal["auto", "self"] = "auto",
    draft_length: int | None = None,
    report: Callable[[PromptRow], None] = lambda _: None,
) -> EndToEnd:
    """Continue every prompt plainly and with drafts.

    Args:
        model: what to run.
        prompts: the first one only warms up.
        bytes_per_token: of weights that a plain pass reads.
        new_tokens: at most, of each answer.
        draft, draft_length: of the speculative side.
        report: called with the result of each prompt.
    """
    first, *others = prompts
    for mode in ("none", draft):
        model.generate(first.text, max_new_tokens=min(new_tokens, 32), draft=mode)
    result = EndToEnd(bytes_per_token, bandwidths=[read_bandwidth(model.threads, repeats=2)])
    for prompt in others:
        plain = model.generate(prompt.text, max_new_tokens=new_tokens, draft="none")
        fast = model.generate(prompt.text, max_new_tokens=new_tokens, draft=draft, draft_length=draft_length)
        result.bandwidths.append(read_bandwidth(model.threads, repeats=2))
        a, b = plain.stats, fast.stats
        if not a.decode_seconds or not b.decode_seconds:
            continue  # an answer of one token comes from the prefill: there is nothing to compare
        row = PromptRow(
            prompt.id,
            b.new_tokens,
            a.tokens_per_second,
            b.tokens_per_second,
            b.acceptance_rate,
            b.tokens_per_round,
            plain.token_ids == fast.token_ids,
        )
        result.rows.append(row)
        report(row)
    return result


def bytes_per_token(config: ModelConfig, weights: Weights) -> int:
    """Bytes of the planes that one plain pass reads: all matrices, but the embedding only where it is the head too."""
    return sum(plane_bytes(weights, group.matrices, draft=False) for group in products(config))
