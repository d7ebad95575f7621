"""The same weights in the file formats of other engines, made when they are first needed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from speq.bench.peers import Files
from speq.bench.peers.gguf_export import export_gguf
from speq.checkpoint.storage import Progress, make_dir
from speq.checkpoint.store import MANIFEST
from speq.conversion.restore import restore


class PeerFiles:
    """Files made from one converted checkpoint, kept in a directory and found there again."""

    def __init__(self, converted: Path, directory: Path, progress: Progress | None = None) -> None:
        self._converted, self._progress = converted, progress
        key = sha256((converted / MANIFEST).read_bytes()).hexdigest()[:12]
        self._directory = make_dir(directory / f"{converted.absolute().name}-{key}")

    def path(self, files: Files) -> Path:
        """Where these files are; they are made if they are not there.

        Raises:
            SpeqError: what making them says.
        """
        if files == "converted":
            return self._converted
        original = self._directory / "original"
        if not original.is_dir():
            restore(self._converted, original, self._progress)
        if files == "huggingface":
            return original
        path = self._directory / f"{files}.gguf"
        if not path.is_file():
            export_gguf(original, path, "BF16" if files == "gguf-bf16" else "F16")
        return path


@contextmanager
def peer_files(converted: Path, workdir: Path | None, progress: Progress | None = None) -> Iterator[PeerFiles]:
    """Files in ``workdir``, which stay, or in a temporary directory."""
    if workdir is not None:
        yield PeerFiles(converted, make_dir(workdir), progress)
        return
    temporary = Path(tempfile.mkdtemp(prefix="speq-peers-"))
    try:
        yield PeerFiles(converted, temporary, progress)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
