"""Converting a checkpoint: its matrices are split (:mod:`speq.checkpoint.split`), then their draft codes are improved
if a calibration is given (:mod:`speq.checkpoint.recode`).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from speq.bits.spec import Dtype, Format
from speq.checkpoint.build import beside, building, is_empty_or_absent
from speq.checkpoint.converted import is_converted, load_converted, read_manifest
from speq.checkpoint.job import ConvertReport, Options, job_of, manifest_of, report_of, to_json
from speq.checkpoint.layout import MANIFEST, WEIGHTS
from speq.checkpoint.recode import Calibration, identity_for, recode
from speq.checkpoint.source import Check, identity, open_source
from speq.checkpoint.split import estimate, split_tensors
from speq.checkpoint.storage import Progress
from speq.errors import SpeqError
from speq.processors import checked_threads


def convert(
    src: Path,
    dst: Path,
    *,
    format: Format = "nested",
    group_size: int = 64,
    dtype: Dtype | None = None,
    dither: int | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
    check: Check | None = None,
) -> ConvertReport:
    """Convert a Hugging Face directory or a GGUF file.

    Args:
        src: what to convert.
        dst: the directory to create.
        format, group_size, dtype, dither: see :class:`Options`.
        calibration: who knows the model's activations; its codes are then chosen for them. The codes of ``e3m0``
            follow from the weights alone, so there it changes nothing.
        progress: called with counts of weights.
        threads: how many to use; None for all cores.
        check: called with the source before any work, to refuse it by raising; what it returns is converted.

    Raises:
        SpeqError: the source cannot be read, the options do not fit it, ``dst`` exists and is something else, no space.
    """
    known = identity_for(calibration, format)
    options = Options(format, group_size, dtype, dither, known)
    job = job_of(identity(src), options)
    if not is_empty_or_absent(dst):
        return _existing(dst, job)
    begin = time.perf_counter()
    threads = checked_threads(threads)
    if calibration is None or known is None:
        _split(src, dst, options, job, progress, threads, check)
    else:
        plain, alone = beside(dst, "plain"), replace(options, calibration=None)
        if not (is_converted(plain) and read_manifest(plain)[0].get("job") == job_of(identity(src), alone)):
            shutil.rmtree(plain, ignore_errors=True)
            _split(src, plain, alone, job_of(identity(src), alone), progress, threads, check)
        _recode(plain, dst, options, job, calibration, progress, threads)
        shutil.rmtree(plain)
    return replace(report_of(dst), seconds=time.perf_counter() - begin)


def _split(
    src: Path,
    dst: Path,
    options: Options,
    job: dict[str, Any],
    progress: Progress | None,
    threads: int,
    check: Check | None,
) -> None:
    source = open_source(src, dither=options.dither)
    if check is not None:
        source = check(source)
    names = [info.name for info in source.tensors]
    with building(dst, job, names, estimate(source, options)) as writer:
        notes = split_tensors(source, options, writer, progress, threads)
        for name, content in (source.files | {"config.json": to_json(source.config)}).items():
            (writer.directory / name).parent.mkdir(exist_ok=True)
            (writer.directory / name).write_bytes(content)
        origin = {
            "name": source.name,
            "file": source.path.name,
            "bytes": sum(file.stat().st_size for file in source.weight_files),
        }
        records = [writer.records[name] for name in names]
        manifest = manifest_of(origin, options, job, records, notes, source.originals)
        (writer.directory / MANIFEST).write_bytes(to_json(manifest))


def _recode(
    plain: Path,
    dst: Path,
    options: Options,
    job: dict[str, Any],
    calibration: Calibration,
    progress: Progress | None,
    threads: int,
) -> None:
    model = load_converted(plain, verify=False)
    names = [record.name for record in model.records]
    size = (plain / WEIGHTS).stat().st_size
    with building(dst, job, names, size + size // 50, of_no_use_if_refused=plain) as writer:
        notes = model.notes + recode(model, calibration, writer, progress, threads)
        others = shutil.ignore_patterns(MANIFEST, WEIGHTS)
        shutil.copytree(plain, writer.directory, ignore=others, dirs_exist_ok=True)
        records = [writer.records[name] for name in names]
        manifest = manifest_of(model.source | asdict(options), options, job, records, notes, model.originals)
        (writer.directory / MANIFEST).write_bytes(to_json(manifest))


def _existing(dst: Path, job: dict[str, Any]) -> ConvertReport:
    """The report of a conversion that is there already, if it is the same one."""
    if is_converted(dst) and read_manifest(dst)[0].get("job") == job:
        return report_of(dst)
    raise SpeqError(f"{dst} exists and is not this conversion; choose another name or delete it")
