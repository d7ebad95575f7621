"""Prompts for measurements: JSON lines of ``id, category, turns``, of which the first turn is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from speq.errors import SpeqError


@dataclass(frozen=True)
class Prompt:
    id: str
    category: str
    text: str


_BUILTIN = (
    ("explain", "Explain in a few sentences why the sky is blue."),
    ("story", "Write a short story about a lighthouse keeper who finds a message in a bottle."),
    ("code", "What are the differences between a list and a tuple in Python? Give an example of each."),
    ("describe", "Describe how bread is made, step by step."),
    ("reason", "A train leaves at nine and travels 180 km at 60 km/h. When does it arrive? Explain your reasoning."),
    ("letter", "Write an email to my landlord about a leaking tap."),
)


def builtin_prompts(count: int | None = None) -> list[Prompt]:
    """The first ``count`` of the prompts that need no file, or all of them.

    Raises:
        SpeqError: there are fewer.
    """
    if count is not None and count > len(_BUILTIN):
        raise SpeqError(f"{len(_BUILTIN)} prompts come with speq, not {count}: give a file of prompts")
    return [Prompt(f"builtin/{name}", name, text) for name, text in _BUILTIN[:count]]


def to_measure(path: Path | None, count: int | None) -> list[Prompt]:
    """The prompts of a measurement, and before them one that only warms up.

    Args:
        path: a file of prompts, or a directory with such files, of which each gives some; None for those that need no
            file.
        count: how many, of each file; None for all. One more of each is taken, of which the first of all warms up.

    Raises:
        SpeqError: a file is missing, holds no prompts, or has too few; or only one prompt is left, which warms up.
    """
    wanted = count and count + 1
    if path is None:
        return builtin_prompts(wanted)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    prompts = [prompt for file in files for prompt in read_prompts(file, wanted)]
    if len(prompts) < 2:
        raise SpeqError(f"{path} has {len(prompts)} prompts: give at least two, of which the first warms up")
    return prompts


def prompts_in_turn(paths: Sequence[Path]) -> Iterator[Prompt]:
    """The prompts of all files in turn, over and over.

    Raises:
        SpeqError: as :func:`read_prompts`.
    """
    files = [read_prompts(path) for path in paths]
    for number in count():
        for prompts in files:
            yield prompts[number % len(prompts)]


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
