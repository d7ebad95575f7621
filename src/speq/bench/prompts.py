"""Prompts for measurements: JSON lines of ``id, category, turns``, of which the first turn is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from speq.errors import SpeqError


@dataclass(frozen=True)
class Prompt:
    id: str
    category: str
    text: str


def read_prompts(path: Path, count: int | None = None) -> list[Prompt]:
    """``count`` prompts spread evenly over the file, or all of them.

    Raises:
        SpeqError: the file is missing, is not JSON lines of prompts, or has fewer than ``count``.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        prompts = [Prompt(str(r["id"]), str(r["category"]), str(r["turns"][0])) for r in records]
    except OSError as error:
        raise SpeqError(f"cannot read prompts from {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SpeqError(f"{path} is not a file of prompts, JSON lines with id, category and turns: {error}") from error
    if count is None:
        return prompts
    if count > len(prompts):
        raise SpeqError(f"{path} has {len(prompts)} prompts, not {count}")
    return [prompts[i * len(prompts) // count] for i in range(count)]
