"""A record of the passes of one generation, for whoever wants to replay them: which kind, how many tokens, at which
context length, and how much of each draft was accepted. It holds no token ids and no text.

A trace file is JSON lines. The first line is the header::

    {"speq_trace": 1, "model": ..., "format": ..., "draft": ..., "prompt_tokens": P, "new_tokens": N,
     "finish_reason": ...}

and every other line a step, in order, where ``context`` counts the tokens in the cache before it::

    {"prefill": tokens, "context": c}
    {"drafted": k, "accepted": a, "context": c}

The second is a round: ``k`` draft passes of one token each, at contexts c, c+1 ... c+k-1, then one verify pass of k+1
tokens at context c, after which the cache holds c+a+1 tokens. A step of plain decoding is a round with k = 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speq.decoding.engine import Engine
from speq.errors import SpeqError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1


class Recorder:
    """An :class:`~speq.decoding.engine.Engine` that notes each step of a generation in ``steps`` and passes it on.

    The loop computes logits of all tokens in verify passes only, drafts before them, and cuts the cache after them:
    that tells the steps apart.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._drafted = 0
        self._verified_at: int | None = None
        self.steps: list[dict[str, int]] = []

    @property
    def vocab_size(self) -> int:
        return self._engine.vocab_size

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    @property
    def length(self) -> int:
        return self._engine.length

    def forward(
        self, tokens: Sequence[int], *, draft: bool = False, logits: Literal["none", "last", "all"] = "last"
    ) -> NDArray[np.float32]:
        context = self._engine.length
        rows = self._engine.forward(tokens, draft=draft, logits=logits)
        if draft:
            self._drafted += 1
        elif logits == "all":
            self._verified_at = context
        else:
            self.steps.append({"prefill": len(tokens), "context": context})
        return rows

    def truncate(self, length: int) -> None:
        self._engine.truncate(length)
        if self._verified_at is not None:
            accepted = length - self._verified_at - 1
            self.steps.append({"drafted": self._drafted, "accepted": accepted, "context": self._verified_at})
            self._drafted, self._verified_at = 0, None


def check_writable(path: Path) -> None:
    """Find out before a long generation whether its trace can be written.

    Raises:
        SpeqError: there is no such directory, or ``path`` is one, or the directory is not writable.
    """
    if path.is_dir():
        raise SpeqError(f"{path} is a directory: give --trace the name of a file")
    if not os.access(path.absolute().parent, os.W_OK):
        raise SpeqError(f"cannot write {path}: there is no writable directory {path.absolute().parent}")


def write_trace(path: Path, header: Mapping[str, Any], steps: Sequence[Mapping[str, int]]) -> None:
    """Write a trace, complete or not at all; ``header`` is described above, without its version."""
    lines = [json.dumps(line) for line in ({"speq_trace": VERSION, **header}, *steps)]
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
