"""A record of the passes of one generation, for whoever wants to replay them: which kind, how many rows, at which
context length, and how much of each proposal was accepted. It holds no token ids and no text.

A trace file is JSON lines. The first line is the header::

    {"speq_trace": 2, "model": ..., "format": ..., "draft": ..., "prompt_tokens": P, "new_tokens": N,
     "finish_reason": ...}

and every other line a step, in order, where ``context`` counts the tokens in the cache before it::

    {"prefill": tokens, "context": c}
    {"draft": [[rows, context], ...], "drafted": k, "verify": rows, "accepted": a, "context": c}

The second is a round: a draft pass for each entry of ``draft``, over so many rows at that context, which made a
proposal of ``k`` tokens; then one verify pass at context c, after which the cache holds c+a+1 tokens. A step of plain
decoding is a round with k = 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from speq.decoding.sequence import Pass, Round
from speq.errors import SpeqError

VERSION = 2

Step: TypeAlias = dict[str, int | list[list[int]]]


class Trace:
    """Notes the passes of one request, which calls it back with each, in ``steps``."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_prefill(self, passed: Pass) -> None:
        self.steps.append({"prefill": passed.rows, "context": passed.context})

    def on_round(self, happened: Round) -> None:
        self.steps.append(
            {
                "draft": [[passed.rows, passed.context] for passed in happened.passes],
                "drafted": happened.proposed,
                "verify": happened.verify.rows,
                "accepted": happened.accepted,
                "context": happened.context,
            }
        )


def check_writable(path: Path) -> None:
    """Find out before a long generation whether its trace can be written.

    Raises:
        SpeqError: there is no such directory, or ``path`` is one, or the directory is not writable.
    """
    if path.is_dir():
        raise SpeqError(f"{path} is a directory: give --trace the name of a file")
    if not os.access(path.absolute().parent, os.W_OK):
        raise SpeqError(f"cannot write {path}: there is no writable directory {path.absolute().parent}")


def write_trace(path: Path, header: Mapping[str, Any], steps: Sequence[Step]) -> None:
    """Write a trace, complete or not at all; ``header`` is described above, without its version."""
    lines = [json.dumps(line) for line in ({"speq_trace": VERSION, **header}, *steps)]
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
