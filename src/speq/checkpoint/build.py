"""A converted checkpoint under construction: a hidden directory beside its destination, renamed when it is complete.

Interrupted, the work is continued from the last finished tensor when the same job is asked for again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speq.checkpoint.layout import WEIGHTS
from speq.checkpoint.storage import check_space, exclusive, make_dir, writing_to
from speq.checkpoint.writer import WeightsWriter
from speq.errors import SpeqError


def beside(dst: Path, kind: str) -> Path:
    """A hidden name next to ``dst``."""
    return dst.absolute().with_name(f".{dst.name.lstrip('.')}.{kind}")


def is_empty_or_absent(path: Path) -> bool:
    """Whether a directory of this name can be made without losing anything."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def building(
    dst: Path, job: dict[str, Any], names: list[str], needed: int, of_no_use_if_refused: Path | None = None
) -> Iterator[WeightsWriter]:
    """Build ``dst`` in ``writer.directory``: add all tensors and write the other files; the rest is done here.

    Args:
        job: what is being done, JSON-able; only the same job is continued.
        names: of all tensors.
        needed: bytes of the result, roughly.
        of_no_use_if_refused: a directory that this work began with.

    Raises:
        SpeqError: no space, no permission, or another process is at it. What is raised within is a refusal, which
            would come again: nothing of the work is kept.
    """
    partial = beside(dst, "partial")
    done = (partial / WEIGHTS).stat().st_size if (partial / WEIGHTS).exists() else 0
    check_space(partial, needed - done, "the conversion")
    make_dir(partial)
    with writing_to(dst.parent, "free some and run again: it continues there"), exclusive(partial / ".lock"):
        writer = WeightsWriter(partial, job, names)
        try:
            yield writer
            writer.finish()
        except SpeqError:
            for directory in (partial, of_no_use_if_refused):
                if directory is not None:
                    shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            writer.close()
        writer.forget()
        (partial / ".lock").unlink()
        if dst.exists():
            dst.rmdir()
        partial.rename(dst)
