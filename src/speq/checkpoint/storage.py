"""The user's disk: the cache, files that are replaced whole, directories that appear when they are complete, and
what can go wrong, said in one clear line.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from speq.checkpoint.foreign import describe_file
from speq.errors import SpeqError

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(label, done, total)``, called often; counts are bytes for files and weights for conversions."""

INSIDE = ".partial"
"""The hidden directory in one that is there already."""
_NO_CONTENT = {INSIDE, "lost+found", ".DS_Store"}
_LONGEST_NAME = 255  # bytes, on most file systems
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # file systems that have none


class StorageError(SpeqError):
    """The place to write to is at fault: full, not writable, or in use. What was done so far can be gone on with."""


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
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Refuse a directory in which nothing can be created.

    Raises:
        SpeqError: no permission, or a read-only file system.
    """
    if not os.access(path, os.W_OK | os.X_OK):
        raise _not_writable(path, PermissionError(errno.EACCES, "permission denied"))


@contextmanager
def writing_to(path: Path, when_full: str = "free some and run again") -> Iterator[None]:
    """Turn a full or read-only disk below into one clear line about ``path``; ``when_full`` is the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(f"no space left on the disk of {path}; {when_full}") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _not_writable(path, error) from None
        if error.errno is None:  # not the system's: libraries derive their own errors from OSError
            raise
        raise StorageError(f"cannot write {path}: {error.strerror}") from None


def check_space(path: Path, needed: int, purpose: str) -> None:
    """Refuse to start what cannot fit: ``needed`` bytes on the disk that holds ``path`` (which may not exist yet).

    Raises:
        SpeqError: less is free.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(f"{purpose} needs {needed / 1e6:,.0f} MB in {existing}, {free / 1e6:,.0f} MB are free")


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Create a directory and hold the lock on it, so that two processes do not write the same thing.

    The directory itself is what is locked: the lock ends with the process, and there is no file to be left behind.

    Raises:
        SpeqError: another process holds it, or the directory cannot be created or written to.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this platform: two processes at once are then the user's to avoid
        make_dir(directory)
        yield
        return
    while True:
        make_dir(directory)
        try:
            handle = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # who had it has just renamed it
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(f"another speq process is writing to {directory}; wait for it to end") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if not _is_open_as(handle, directory):
                continue
            yield
            return
        finally:
            os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it finds all of the old or all of the new content.

    Raises:
        OSError: as files do; nothing is left behind then.
    """
    with replacing(path, path.with_name(f".{path.name[:200]}.{os.getpid()}.new")) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, new: Path) -> Iterator[BinaryIO]:
    """A file to write, called ``new``, that takes the place of ``path`` when the block ends well.

    Raises:
        OSError: as files do; ``new`` is gone then.
    """
    try:
        with new.open("wb") as file:
            yield file
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file; ``missing`` is the error message when there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpeqError(missing) from None
    except (ValueError, OSError, RecursionError) as error:
        what = describe_file(path, "json") if isinstance(error, ValueError) else None
        raise SpeqError(f"{path} {what}" if what else f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise SpeqError(f"cannot read {path}: it is not a JSON object")
    return content


def read_json_if_whole(path: Path) -> Any:
    """What a JSON file holds; None if it is not there or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def place(dst: Path) -> Path:
    """The absolute path without links of a directory that is there or can be made.

    Raises:
        SpeqError: it is neither, or nothing can be written there.
    """
    try:
        target = Path(os.path.realpath(dst))
        target.lstat()
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        raise SpeqError(f"cannot write {dst}: a file is where its directory should be; choose another place") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpeqError(f"cannot write {dst}: {reason}; choose another name") from None
    if target.is_symlink():  # links are resolved: this one leads back to itself
        raise SpeqError(f"cannot write {dst}: it is a link to itself; choose another name")
    if target.exists() and not target.is_dir():
        raise SpeqError(f"{dst} exists and is not a directory; choose another name")
    check_writable(next(path for path in (target, *target.parents) if path.is_dir()))
    return target


def hidden(target: Path) -> Path:
    """The directory that becomes ``target`` when it is complete, or whose content does."""
    return target / INSIDE if target.is_dir() else beside(target)


def beside(target: Path) -> Path:
    """A hidden name next to a path, no longer than names can be."""
    name = f".{target.name}.partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{sha256(os.fsencode(target.name)).hexdigest()[:32]}.partial"
    return target.with_name(name)


def empty(directory: Path) -> None:
    """Remove all that a directory holds."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_new(parents: list[Path]) -> None:
    """Remove directories that were made for a destination, inner ones first, if nothing came to lie in them."""
    for path in parents:
        with suppress(OSError):
            path.rmdir()


def is_empty(directory: Path) -> bool:
    """Whether nothing would be mixed with what is put into a directory.

    Raises:
        SpeqError: it cannot be read.
    """
    try:
        return all(path.name in _NO_CONTENT for path in directory.iterdir())
    except OSError as error:
        raise SpeqError(f"cannot read {directory}: {error.strerror}; choose another place") from None


def _is_open_as(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _not_writable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write to {path} ({(error.strerror or str(error)).lower()}); choose another place, or for the cache "
        "set SPEQ_CACHE to a writable directory"
    )
