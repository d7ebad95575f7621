"""Reading the traces that ``speq generate --trace`` writes; ``speq.decoding.trace`` describes the format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import LONGEST_DRAFT, Round

VERSION = 2
READ = (1, 2)
"""Versions that are read. In version 1 a round names neither its draft passes nor the rows of its verify pass: there
was a draft pass over one row for each drafted token, and the verify pass had one row more than that."""

MOST_ROWS = 256  # of a pass in decoding
MOST_TOKENS = 1 << 20  # of a prompt or a text, more than any model takes


@dataclass(frozen=True)
class Trace:
    """What a generation did. ``cached`` tokens of the prompt were in the cache before it.

    ``format`` is that of the weights that drafted, if the trace says so.
    """

    name: str
    prompt_tokens: int
    cached: int
    new_tokens: int
    rounds: tuple[Round, ...]
    format: str | None = None


def read_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        SpeqError: it cannot be read, has another version, or contradicts itself.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SpeqError(f"there is no trace {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpeqError(f"cannot read the trace {path}: {error}") from None
    header = _parse(path, 1, lines[0] if lines else "")
    version = header.get("speq_trace")
    if version is None:
        raise SpeqError(f"{path} is not a trace: record one with `speq generate --trace FILE`")
    if version not in READ or isinstance(version, bool):
        raise SpeqError(f"{path} is a trace of version {version!r}; this speq reads versions 1 and 2: record it again")
    prompt, new = (_count(path, 1, header, key, most=MOST_TOKENS) for key in ("prompt_tokens", "new_tokens"))
    steps = [(number, _parse(path, number, line)) for number, line in enumerate(lines[1:], 2)]
    prefilled = sum(_count(path, number, step, "prefill") for number, step in steps if "prefill" in step)
    if prefilled > prompt:
        raise SpeqError(f"{path} has a prefill of {prefilled} tokens for a prompt of {prompt}: record it again")
    rounds = []
    context = prompt
    for number, step in steps:
        if "prefill" in step:
            continue
        drafted = _count(path, number, step, "drafted", most=LONGEST_DRAFT)
        accepted, at = (_count(path, number, step, key) for key in ("accepted", "context"))
        if accepted > drafted or at != context:
            raise SpeqError(f"{path}, line {number}: this round does not follow from those before it: record it again")
        passes, verified = _passes(path, number, step, at) if version == VERSION else (None, None)
        rounds.append(_round(drafted, accepted, passes, verified))
        context += accepted + 1
    if not prefilled or 1 + sum(one.accepted + 1 for one in rounds) < new:
        raise SpeqError(f"{path} is incomplete: its steps yield fewer than {new} tokens: record it again")
    format = header.get("format")
    if format is not None and not isinstance(format, str):
        raise SpeqError(f"{path}, line 1: format is {format!r}; it must be the name of a format")
    return Trace(path.name, prompt, prompt - prefilled, new, tuple(rounds), format)


def _passes(path: Path, number: int, step: dict[str, Any], context: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """Rows of the draft passes of a round, each with the tokens of the round before it, and rows of its verify pass."""
    listed = step.get("draft")
    if not isinstance(listed, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in listed):
        raise SpeqError(f"{path}, line {number}: draft is {listed!r:.60}; it must be a list of pairs, rows and context")
    passes = []
    for entry in listed:
        pair = dict(zip(("rows", "context"), entry, strict=True))
        rows, at = _count(path, number, pair, "rows", most=MOST_ROWS), _count(path, number, pair, "context")
        if rows < 1 or not context <= at <= context + MOST_ROWS:
            raise SpeqError(f"{path}, line {number}: a draft pass of this round cannot be part of it: record it again")
        passes.append((rows, at - context))
    verified = _count(path, number, step, "verify", most=MOST_ROWS)
    if verified <= _count(path, number, step, "drafted"):
        raise SpeqError(f"{path}, line {number}: {verified} rows cannot verify what was drafted: record it again")
    return tuple(passes), verified


def _round(drafted: int, accepted: int, passes: tuple[tuple[int, int], ...] | None, verified: int | None) -> Round:
    """A round; what is as in version 1 is left out, so that equal rounds are equal."""
    usual = Round(drafted, accepted)
    if (passes, verified) in ((None, None), (usual.draft_passes, usual.verify_rows)):
        return usual
    return Round(drafted, accepted, passes, verified)


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, endless digits or brackets
        value = None
    if not isinstance(value, dict):
        raise SpeqError(f"{path}, line {number}: not a line of a trace: record one with `speq generate --trace FILE`")
    return value


def _count(path: Path, number: int, line: dict[str, Any], key: str, most: int = 2 * MOST_TOKENS) -> int:
    value = line.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpeqError(f"{path}, line {number}: {key} is {value!r}; it must be a count of tokens")
    if value > most:
        raise SpeqError(f"{path}, line {number}: {key} is more than {most:,}, the most that is replayed")
    return value
