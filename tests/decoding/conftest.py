"""A model without weights: logits are a pure function of the token history, the draft's are a noisy version of them.

Some positions are nearly certain and some wide open, as in real text.
It checks how decoding uses it, too: exact rows are only ever computed over exact cache entries, and the cache never
overflows. A virtual clock advances with every pass, so that tests of speed need no real time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray


class MockEngine:
    """``noise`` 0 makes a perfect draft; costs are in virtual seconds."""

    def __init__(
        self,
        vocab_size: int = 61,
        context_length: int = 1000,
        *,
        noise: float = 0.5,
        spread: float = 3.0,
        draft_cost: float = 0.3,
        verify_cost: Sequence[float] = (1.0,),
        salt: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.noise, self.spread, self.salt = noise, spread, salt
        self.draft_cost, self.verify_cost = draft_cost, verify_cost
        self.now = 0.0
        self.passes: list[tuple[int, bool]] = []
        self._cache: list[tuple[int, bool]] = []  # (token, whether its entry is exact)

    @property
    def length(self) -> int:
        return len(self._cache)

    def clock(self) -> float:
        return self.now

    def forward(
        self, tokens: Sequence[int], *, draft: bool = False, logits: Literal["none", "last", "all"] = "last"
    ) -> NDArray[np.float32]:
        self.passes.append((len(tokens), draft))
        self.now += self.draft_cost if draft else self.verify_cost[min(len(tokens), len(self.verify_cost)) - 1]
        rows = []
        for token in tokens:
            assert draft or all(exact for _, exact in self._cache), "an exact pass over approximate entries"
            assert 0 <= token < self.vocab_size
            self._cache.append((token, not draft))
            assert self.length <= self.context_length, "the cache overflows"
            rows.append(self._row(draft))
        wanted = {"none": rows[:0], "last": rows[-1:], "all": rows}[logits]
        return np.array(wanted, np.float32).reshape(-1, self.vocab_size)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self._cache[length:]

    def _row(self, draft: bool) -> NDArray[np.float32]:
        history = repr([token for token, _ in self._cache[-6:]]) + str(self.length) + str(self.salt)
        digest = hashlib.blake2b(history.encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        row = rng.standard_normal(self.vocab_size) * self.spread * rng.choice([0.5, 1.0, 4.0])
        if draft:
            row += rng.standard_normal(self.vocab_size) * self.noise
        return row.astype(np.float32)


@pytest.fixture(scope="session")
def mock_engine() -> type[MockEngine]:
    return MockEngine
