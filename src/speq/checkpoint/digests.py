"""Digests of large files, remembered in the cache so that a file that nobody touched is not read again.

What is remembered of a file counts only while its size, times and inode are the same. Modification times can be set
(``touch``, ``cp -p``, archives), so the time of the last change of the inode counts too: the system alone sets it, at
every write, rename or setting of times. It is coarse, so a file that was changed within the last seconds is read
anyway, as a further write could leave no trace.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from speq.checkpoint.storage import cache_dir, replace_file
from speq.errors import SpeqError

_PART_BYTES = 1 << 28
_READ_BYTES = 1 << 23
_SETTLED_NS = 2_000_000_000  # more than the steps in which file systems count time

Read = Callable[[int], object]
"""Told how many bytes were read since the last call."""


def stamp(path: Path) -> list[int]:
    """What differs after a file has been written to or replaced: size, times in ns, inode.

    Raises:
        SpeqError: the file cannot be examined.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SpeqError(f"cannot read {path}: {error.strerror}") from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def data_digest(path: Path, begin: int, read: Read | None = None) -> str:
    """A digest of all bytes of a file from ``begin`` on, 128 bits as hex.

    It is made of digests of parts, each of which is remembered: cut short, the reading goes on where it was.

    Raises:
        SpeqError: the file cannot be read.
    """
    before = stamp(path)
    parts = [xxhash.xxh3_128_hexdigest(str(before[0] - begin).encode())]
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with path.open("rb") as file:
            for first in range(begin, before[0], _PART_BYTES):
                last = min(first + _PART_BYTES, before[0])
                name = f"bytes {first} to {last}"
                digest = recall(path, name)
                if digest is None:
                    digest = _digest_of(file, buffer, first, last, read)
                    remember(path, name, digest, before)
                elif read is not None:
                    read(last - first)
                parts.append(digest)
    except OSError as error:
        raise SpeqError(f"cannot read {path}: {error.strerror or error}") from None
    if stamp(path) != before:
        raise SpeqError(f"{path} is being written to; wait for that to end")
    return xxhash.xxh3_128_hexdigest(" ".join(parts).encode())


def recall(path: Path, what: str) -> str | None:
    """What was remembered of a file, None if nothing was or the file is not as it was then."""
    try:
        content = json.loads(_place(path).read_bytes())
        if content["stamp"] != stamp(path):
            return None
        value = content["values"].get(what)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def remember(path: Path, what: str, value: str, seen: list[int]) -> None:
    """Remember ``value``, which was found in the file while its :func:`stamp` was ``seen``.

    Nothing is remembered of a file that was changed a moment ago, nor where the cache cannot be written to: it is then
    read again the next time.
    """
    if max(seen[1], seen[2]) > time.time_ns() - _SETTLED_NS:
        return
    place = _place(path)
    values: dict[str, str] = {}
    try:
        content = json.loads(place.read_bytes())
        if content["stamp"] == seen:
            values = dict(content["values"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    values[what] = value
    content = {"path": os.path.realpath(path), "stamp": seen, "values": values}
    try:
        new = not place.parent.exists()
        place.parent.mkdir(parents=True, exist_ok=True)
        if not new and not place.exists():
            _forget_vanished(place.parent)
        replace_file(place, json.dumps(content).encode())
    except OSError:
        return


def _place(path: Path) -> Path:
    return cache_dir() / "digests" / f"{xxhash.xxh3_128_hexdigest(os.fsencode(os.path.realpath(path)))}.json"


def _forget_vanished(directory: Path) -> None:
    """Drop what is remembered of files that are no more."""
    for place in directory.glob("*.json"):
        try:
            path = json.loads(place.read_bytes())["path"]
        except (OSError, ValueError, KeyError, TypeError):
            path = ""
        if not os.path.exists(path):
            place.unlink(missing_ok=True)


def _digest_of(file: io.BufferedReader, buffer: memoryview, first: int, last: int, read: Read | None) -> str:
    file.seek(first)
    digest = xxhash.xxh3_128()
    while first < last:
        count = file.readinto(buffer[: last - first])
        if not count:
            raise OSError("it became shorter while it was read")
        digest.update(buffer[:count])
        first += count
        if read is not None:
            read(count)
    return digest.hexdigest()
