"""The user's cache directory, and what can go wrong with disks, said in one clear line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from speq.errors import SpeqError

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(label, done, total)``, called often; counts are bytes for files and weights for conversions."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir() -> Path:
    """Where pulled and converted models live: ``SPEQ_CACHE``, or the platform's cache directory for speq.

    Raises:
        SpeqError: neither is known.
    """
    if chosen := os.environ.get("SPEQ_CACHE"):
        return expanded(chosen)
    import platformdirs

    path = Path(platformdirs.user_cache_dir("speq", appauthor=False))
    if not path.is_absolute():  # there is no home directory that it could lie in
        raise SpeqError("there is no home directory for the cache: set SPEQ_CACHE to a directory, or HOME")
    return path


def expanded(name: str) -> Path:
    """The path of that name, with ``~`` for the home directory where there is one."""
    return Path(os.path.expanduser(name))


def make_dir(path: Path) -> Path:
    """Create a directory and its parents.

    Raises:
        SpeqError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None
    if not os.access(path, os.W_OK):
        raise _not_writable(path, PermissionError(errno.EACCES, "permission denied"))
    return path


@contextmanager
def writing_to(path: Path, when_full: str = "free some and run again") -> Iterator[None]:
    """Turn a full or read-only disk below into one clear line about ``path``; ``when_full`` is the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise SpeqError(f"no space left on the disk of {path}; {when_full}") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _not_writable(path, error) from None
        if error.errno is None:  # not the system's: libraries derive their own errors from OSError
            raise
        raise SpeqError(f"cannot write {path}: {error.strerror}") from None


def check_space(path: Path, needed: int, purpose: str) -> None:
    """Refuse to start what cannot fit: ``needed`` bytes on the disk that holds ``path`` (which may not exist yet).

    Raises:
        SpeqError: less is free.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SpeqError(f"{purpose} needs {needed / 1e6:,.0f} MB in {existing}, {free / 1e6:,.0f} MB are free")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, so that two processes do not write the same thing.

    Raises:
        SpeqError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this platform: two processes at once are then the user's to avoid
        yield
        return
    with writing_to(path):
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpeqError(f"another speq process is writing to {path.parent}; wait for it to end") from None
        yield


def _not_writable(path: Path, error: OSError) -> SpeqError:
    return SpeqError(
        f"cannot write to {path} ({(error.strerror or str(error)).lower()}); choose another place, or for the cache "
        "set SPEQ_CACHE to a writable directory"
    )
