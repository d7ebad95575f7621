"""From what the user calls a model to a converted checkpoint, ready to run: fetched, checked, converted and calibrated
once, then found again.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from speq.checkpoint.fetching.catalogue import find_entry
from speq.checkpoint.fetching.pull import pull, pull_record
from speq.checkpoint.sources.opening import identity
from speq.checkpoint.storage import Progress, cache_dir, expanded
from speq.checkpoint.store import DTYPES, MANIFEST, is_converted, read_manifest
from speq.conversion.calibrate import Calibration, identity_for
from speq.conversion.convert import convert
from speq.conversion.job import Options, job_of
from speq.conversion.workplace import clear_vanished, finish_left
from speq.errors import SpeqError
from speq.formats.spec import Dtype, Format


def converted_model(
    name: str,
    *,
    progress: Progress | None = None,
    format: Format | None = None,
    group_size: int | None = None,
    dtype: Dtype | None = None,
    dither: int | None = None,
    calibrate: bool = True,
    threads: int | None = None,
) -> Path:
    """The converted checkpoint of a model.

    Args:
        name: a converted directory, a Hugging Face directory, a GGUF file, a catalogue name or a hub id.
        progress: called with counts of bytes while fetching and of weights while converting.
        format, group_size, dtype, dither: as for a conversion; a converted directory must agree with those that are
            given.
        calibrate: whether a conversion chooses the draft codes for the activations on a little text.
        threads: for the conversion; None for all cores.

    Raises:
        SpeqError: nothing of that name, an unsupported model, or what fetching or converting it says.
    """
    path = expanded(name)
    if path.is_dir():
        finish_left(Path(os.path.realpath(path)))
    if path.is_dir() and is_converted(path):
        _check_options(path, format=format, group_size=group_size, dtype=dtype, dither=dither)
        return path
    calibration = Calibration() if calibrate else None
    chosen: Format = format or "nested"
    options = Options(chosen, group_size or 64, dtype, dither, identity_for(calibration, chosen))
    if not path.exists():
        found = _converted_earlier(name, options)
        if found is not None:
            return found
    source = locate(name, progress)
    known = identity(source, progress)
    dst = _cached(name, known, options)
    if not is_converted(dst):
        conversions = dst.parent
        convert(
            source,
            dst,
            format=options.format,
            group_size=options.group_size,
            dtype=dtype,
            dither=dither,
            calibration=calibration,
            progress=progress,
            threads=threads,
            relatives=sorted(path.parent for path in conversions.glob(f"*/{MANIFEST}")),
        )
        clear_vanished(conversions, source, known)
    return dst


def locate(name: str, progress: Progress | None = None) -> Path:
    """Where the unconverted model lies: a path as it is, everything else pulled.

    Raises:
        SpeqError: nothing of that name.
    """
    path = expanded(name)
    if path.is_dir() or path.is_file():
        return path
    if path.exists():
        raise SpeqError(f"{name} is neither a directory nor a file: give the model's")
    if path.suffix in (".gguf", ".safetensors") or path.is_absolute() or name.startswith("."):
        raise SpeqError(f"{name} does not exist")
    return pull(name, progress)


def _converted_earlier(name: str, options: Options) -> Path | None:
    """The conversion of a pulled model that has been deleted since."""
    record = pull_record(name)
    if record is None or Path(record["path"]).exists():
        return None
    dst = _cached(name, record["identity"], options)
    return dst if is_converted(dst) else None


def _cached(name: str, source_identity: str, options: Options) -> Path:
    """Where the conversion of a source is or will be. What it is called is for the reader: the key tells it apart, so
    that copies of a source share it.
    """
    conversions = cache_dir() / "converted"
    key = sha256(repr(job_of(source_identity, options)).encode()).hexdigest()[:12]
    found = sorted(path for path in conversions.glob(f"*-{key}") if is_converted(path))
    if found:
        return found[0]
    entry = find_entry(name)
    stem = re.sub(r"[^\w.-]+", "-", entry.name if entry else Path(os.path.abspath(expanded(name))).name)
    return conversions / f"{stem.lstrip('.')[:100]}-{key}"


def _check_options(path: Path, **asked: Any) -> None:
    """Refuse options that a converted checkpoint does not have."""
    manifest, records, _ = read_manifest(path)
    dtypes = {record.dtype for record in records if record.spec is not None}
    has = manifest.get("source", {}) | {"dtype": DTYPES[dtypes.pop()] if len(dtypes) == 1 else "mixed"}
    for option, value in asked.items():
        if value is not None and value != has.get(option):
            flag = f"--{option.replace('_', '-')}"
            raise SpeqError(
                f"{path} is converted with {flag} {has.get(option)}, not {value}; convert the original again"
            )
