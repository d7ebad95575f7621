"""A converted checkpoint under construction: a hidden directory, put in its place when it is complete.

Interrupted, the work is continued when the same job is asked for again. The hidden directory lies beside the
destination and gets its name in the end. If the destination is a directory already (empty, or a conversion that is to
be replaced), it may be somebody's working directory or a mount point and has to stay the directory it is; so the hidden
one lies in it, and in the end its files are moved one by one, the manifest last. A conversion that is replaced is
usable until then, without its manifest while files are moved; cut short there, moving them is all that is left to do,
and whoever uses the directory next does it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speq.checkpoint.sources.huggingface import CARRIED
from speq.checkpoint.storage import (
    INSIDE,
    StorageError,
    beside,
    empty,
    exclusive,
    hidden,
    is_empty,
    place,
    read_json_if_whole,
    remove_new,
    replace_file,
    writing_to,
)
from speq.checkpoint.store import MANIFEST, WEIGHTS, is_converted
from speq.checkpoint.writer import JOB, WeightsWriter
from speq.conversion.kept import Kept
from speq.errors import SpeqError

_PLAIN, _KEPT, _ORIGIN = "plain", "kept", "origin.json"


class Workplace:
    """The hidden directory, held by this process alone.

    Attributes:
        directory: where the result is written.
        target: where it is put.
        plain: a directory in it for a conversion that is halfway.
        kept: what steps under way have done.
    """

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory, self.target = directory, target
        self.plain = directory / _PLAIN
        self.kept = Kept(directory / _KEPT)

    def settle(self) -> None:
        """Put the complete result in its place."""
        self.kept.clear()
        shutil.rmtree(self.plain, ignore_errors=True)
        for name in (*WeightsWriter.own_files, _ORIGIN):
            (self.directory / name).unlink(missing_ok=True)
        for path in self.directory.glob(".*.new"):
            path.unlink()
        put(self.directory, self.target)


def put(directory: Path, target: Path) -> None:
    """Make the complete :func:`hidden` directory ``target``, or what lies in it.

    Raises:
        SpeqError: something else has appeared there.
        OSError: as files do.
    """
    if not target.exists():
        directory.rename(target)
        return
    if directory.parent != target and not is_empty(target):
        raise SpeqError(f"{target} has appeared meanwhile; choose another name")
    _move_into(directory, target)
    shutil.rmtree(directory)


def complete(directory: Path, files: dict[str, bytes], manifest: bytes) -> None:
    """Write what stands beside the weights; the manifest, which comes last and whole, makes a result complete."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    replace_file(directory / MANIFEST, manifest)


def destination(dst: Path) -> Path:
    """Where a conversion to ``dst`` has to be put: an absolute path without links. Checked before any work.

    Raises:
        SpeqError: something else is there, or nothing can be written there.
    """
    target = place(dst)
    if target.exists() and not (is_empty(target) or is_converted(target) or is_converted(target / INSIDE)):
        raise SpeqError(f"{dst} exists and is not this conversion; choose another name, or an empty directory")
    return target


@contextmanager
def workplace(target: Path, job: dict[str, Any], src: Path) -> Iterator[Workplace]:
    """Hold the hidden directory for ``target``, with what an earlier process left there of the same job.

    What a full disk or an interruption cuts short stays, and is continued; on a refusal nothing does.

    Args:
        target: a :func:`destination`.
        job: what is being done, JSON-able; only the same job is continued.
        src: the source that it is done for.

    Raises:
        SpeqError: no space, no permission, or another process is at it. What is raised within is a refusal, which
            would come again: nothing of the work is kept.
    """
    directory = hidden(target)
    new_parents = [path for path in target.parents if not path.exists()]
    with writing_to(target.parent, "free some and run again: it continues there"):
        try:
            with exclusive(directory):
                _prepare(directory, job, src)
                try:
                    yield Workplace(directory, target)
                except SpeqError as error:
                    if not isinstance(error, StorageError):
                        shutil.rmtree(directory)
                    raise
                finally:
                    if not any(next(directory.rglob(name), None) for name in (WEIGHTS, MANIFEST)):
                        shutil.rmtree(directory, ignore_errors=True)
        finally:
            remove_new(new_parents)


def finish_left(target: Path, job: dict[str, Any] | None = None) -> None:
    """Put in its place what an earlier process completed for ``target`` without coming to that.

    Args:
        target: an absolute path; nothing need be there.
        job: of which the result must be if it has not begun to replace anything; None for no such result.

    Raises:
        SpeqError: no permission, or another process is at it.
    """
    for directory in (target / INSIDE, beside(target)):
        if not is_converted(directory) or (directory.parent != target and job_at(directory) != job):
            continue
        with writing_to(target), exclusive(directory):
            if is_converted(directory):
                Workplace(directory, target).settle()


def clear_left(target: Path) -> None:
    """Remove what earlier processes left of conversions to ``target``, which is complete."""
    for directory in (target / INSIDE, beside(target)):
        _remove_unless_in_use(directory)


def clear_vanished(parent: Path, src: Path, source_identity: str) -> None:
    """Remove unfinished conversions in ``parent`` that nobody can ask for any more: of sources that are gone, of
    ``src`` as it was before it became what ``source_identity`` names, and of earlier releases.
    """
    for directory in parent.glob(".*"):
        origin, job = read_json_if_whole(directory / _ORIGIN), read_json_if_whole(directory / JOB)
        path = origin.get("path") if isinstance(origin, dict) else None
        wanted = (
            isinstance(path, str)
            and os.path.lexists(path)
            and isinstance(job, dict)
            and (path != os.path.abspath(src) or job.get("source") == source_identity)
        )
        if not wanted:
            _remove_unless_in_use(directory)


def job_at(path: Path) -> dict[str, Any] | None:
    """The job that a converted checkpoint, of any format version, is the result of; None if it does not say."""
    return _entry_of_manifest(path, "job")


def source_at(path: Path) -> dict[str, Any]:
    """What the manifest of a converted checkpoint says of its source; nothing if it says nothing."""
    return _entry_of_manifest(path, "source") or {}


def _prepare(directory: Path, job: dict[str, Any], src: Path) -> None:
    """Throw away what is of another job."""
    if read_json_if_whole(directory / JOB) == job and not is_converted(directory):
        return
    empty(directory)
    replace_file(directory / _ORIGIN, json.dumps({"path": os.path.abspath(src)}).encode())
    replace_file(directory / JOB, json.dumps(job).encode())


def _move_into(directory: Path, target: Path) -> None:
    """Replace the conversion in ``target`` by the one in ``directory``, which may have no weights if they stay."""
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    if is_converted(target):
        for path in [path for pattern in CARRIED for path in target.glob(pattern)]:
            if path.relative_to(target) not in files:
                path.unlink(missing_ok=True)
        (target / MANIFEST).unlink()
    for file in sorted(files, key=lambda file: file.name == MANIFEST):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).replace(target / file)


def _remove_unless_in_use(directory: Path) -> None:
    if not directory.is_dir():
        return
    with suppress(SpeqError), exclusive(directory):
        shutil.rmtree(directory, ignore_errors=True)


def _entry_of_manifest(path: Path, name: str) -> dict[str, Any] | None:
    manifest = read_json_if_whole(path / MANIFEST)
    entry = manifest.get(name) if isinstance(manifest, dict) else None
    return entry if isinstance(entry, dict) else None
