"""Progress of a download that some other program makes: the bytes that have appeared in its directory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speq.checkpoint.storage import Progress

_SECONDS = 0.2


@contextmanager
def watching(directory: Path, label: str, done: int, total: int, progress: Progress | None) -> Iterator[None]:
    """Until the block ends, report ``done`` plus the growth of ``directory``, several times a second from a thread."""
    if progress is None:
        yield
        return
    before = directory_bytes(directory)
    finished = threading.Event()

    def report() -> None:
        while not finished.wait(_SECONDS):
            progress(label, min(done + max(0, directory_bytes(directory) - before), total), total)

    thread = threading.Thread(target=report, daemon=True)
    progress(label, done, total)
    try:
        thread.start()
    except RuntimeError:  # no more threads for us: the download goes on without reports
        yield
        return
    try:
        yield
    finally:
        finished.set()
        thread.join()


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory, which may not exist."""
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.lstat().st_size if file.is_file() else 0
        except OSError:  # it was moved or removed meanwhile
            continue
    return total
