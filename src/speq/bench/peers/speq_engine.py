"""speq itself as one of the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import speq
from speq.bench.peers import Generation


class SpeqPeer:
    """A speq model; ``draft`` as for :meth:`speq.Model.stream`."""

    def __init__(self, model: speq.Model, draft: Literal["auto", "self", "none"]) -> None:
        self._model, self._draft = model, draft

    def generate(self, ids: list[int], tokens: int) -> Generation:
        result = self._model.generate(ids, max_new_tokens=tokens, draft=self._draft, ignore_ends=True)
        return Generation(result.token_ids, result.stats.prefill_seconds, result.stats.decode_seconds)


def load(path: Path, threads: int, context: int, draft: Literal["auto", "self", "none"]) -> SpeqPeer:
    return SpeqPeer(speq.load(path, threads=threads, context=context), draft)
