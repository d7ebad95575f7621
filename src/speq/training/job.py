"""What a training job is asked for, and the hidden directory that keeps its work until the head is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from speq.checkpoint.storage import beside, exclusive, is_empty, place, read_json_if_whole, writing_to
from speq.checkpoint.store import Converted
from speq.errors import SpeqError

VERSION = 1
"""Of the procedure: work of another version is not continued."""

STEPS = 2000
OWN_TOKENS = 1_000_000
JOB, CHECKPOINT = "job.json", "checkpoint.pt"
_TEXT_OPTIONS = ("tokens", "length", "seed", "device")


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        tokens: of text; None for a million of the model's own, or all of the user's.
        steps: of the optimiser; None for as many as fit into ``minutes``, or 2000.
        minutes: of training, at most; None for no limit. Writing text is not counted.
        batch: tokens of a step.
        length: tokens of a row of text.
        vocabulary: tokens that the head can propose; None for those whose share of the text is worth their bytes.
        inner: width of the feed-forward part; None for twice the hidden size, at most the model's own.
        taps: after how many layers the model is read; None for a low, a middle and a high one.
        seed: of everything that is drawn.
        device: ``cpu`` or ``cuda``; ``auto`` takes a GPU that torch can use.
    """

    tokens: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int = 4096
    length: int = 768
    vocabulary: int | None = None
    inner: int | None = None
    taps: tuple[int, ...] | None = None
    seed: int = 0
    device: str = "auto"


def model_identity(model: Converted) -> str:
    """A short name for the content of a converted checkpoint, at both of its levels."""
    sums = [(record.name, record.checksums) for record in model.records]
    return sha256(json.dumps([model.config, sums], sort_keys=True).encode()).hexdigest()[:16]


def job_of(model: Converted, options: Options, device: str, files: Sequence[Path]) -> dict[str, Any]:
    """What tells one job from another, JSON-able. The device counts: its text and its rounding are its own."""
    return {
        "version": VERSION,
        "model": model_identity(model),
        "options": asdict(options) | {"device": device, "taps": list(options.taps) if options.taps else None},
        "text": [sha256(file.read_bytes()).hexdigest()[:16] for file in files],
    }


@contextmanager
def working_directory(out: Path, job: dict[str, Any]) -> Iterator[Path]:
    """The hidden directory beside ``out``, held against other processes.

    What it holds of the same job is continued. As long as no step of a training has been kept, another job with the
    same text goes on with that. An error of the user's leaves nothing but a training that has begun.

    Raises:
        SpeqError: ``out`` exists, cannot be written, or the directory holds the work of another job.
    """
    check_free(out)
    working = beside(place(out))
    with writing_to(working.parent, "free some and run again: it continues there"), exclusive(working):
        file = working / JOB
        found = read_json_if_whole(file)
        begun = (working / CHECKPOINT).exists()
        if found is not None and found != job and (begun or _text_of(found) != _text_of(job)):
            raise SpeqError(
                f"{working} holds an unfinished training with {_difference(found, job)}: give the same options to "
                "continue it, or delete it"
            )
        file.write_text(json.dumps(job))
        try:
            yield working
        except SpeqError:
            if not (working / CHECKPOINT).exists():
                shutil.rmtree(working)
            raise


def check_free(out: Path) -> None:
    """Refuse a name that is taken.

    Raises:
        SpeqError: ``out`` is a file, or a directory with something in it, or nothing can be written there.
    """
    target = place(out)
    if target.exists() and not is_empty(target):
        raise SpeqError(f"{out} exists; choose another name or delete it")


def _text_of(job: Any) -> Any:
    """The part of a job that its text depends on."""
    if not isinstance(job, dict) or not isinstance(job.get("options"), dict):
        return None
    options = {name: job["options"].get(name) for name in _TEXT_OPTIONS}
    return {name: value for name, value in job.items() if name != "options"} | options


def _difference(found: Any, job: dict[str, Any]) -> str:
    """What another job has of its own, in words."""
    had = found.get("options", {}) if isinstance(found, dict) else {}
    for name, value in job["options"].items():
        if had.get(name) != value:
            return f"--{name} {had.get(name)} rather than {value}"
    return "another text" if isinstance(found, dict) and found.get("model") == job["model"] else "another model"
