"""Result files: complete or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speq.errors import SpeqError


def check_writable(path: Path) -> None:
    """Find out before a long computation whether its results can be written to ``path``.

    Raises:
        SpeqError: it is a directory, or lies in none that is there and writable.
    """
    if path.is_dir():
        raise SpeqError(f"cannot write {path}: it is a directory")
    directory = path.absolute().parent
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise SpeqError(f"cannot write {path}: there is no writable directory {directory}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    A link stays one, and what is there but no file, such as a terminal or a pipe, is written to.

    Raises:
        SpeqError: the directory is missing or not writable, or the disk is full.
    """
    place = path.resolve()
    partial = place.with_name(f".{place.name}.partial")
    try:
        if place.exists() and not (place.is_file() or place.is_dir()):
            yield place
            return
        yield partial
        partial.replace(place)
    except OSError as error:
        raise SpeqError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, readable and with a line break at the end."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def make_directory(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        SpeqError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpeqError(f"cannot create the directory {path}: {(error.strerror or str(error)).lower()}") from None
    return path
