"""Converting a checkpoint: its matrices are split (:mod:`speq.conversion.split`), then their draft codes are improved
if a calibration is given (:mod:`speq.conversion.calibrate`). Where a conversion of the same weights is at hand, only
what stands beside the weights is written.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from speq.checkpoint.digests import stamp
from speq.checkpoint.sources.opening import identity, open_source, same_weights
from speq.checkpoint.sources.source import Source
from speq.checkpoint.storage import Progress, check_space
from speq.checkpoint.store import MANIFEST, WEIGHTS, Converted, is_converted, load_converted
from speq.checkpoint.writer import WeightsWriter
from speq.conversion.calibrate import Calibration, calibration_notes, identity_for, recode, was_refused
from speq.conversion.dither import DitheredSource
from speq.conversion.job import ConvertReport, Options, job_of, manifest_of, origin_of, report_of, to_json
from speq.conversion.split import estimate, split_notes, split_tensors
from speq.conversion.workplace import (
    Workplace,
    clear_left,
    complete,
    destination,
    finish_left,
    job_at,
    source_at,
    workplace,
)
from speq.errors import SpeqError
from speq.formats.spec import Dtype, Format
from speq.models.tensors import fit_source
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
    replace_other: bool = False,
    relatives: Iterable[Path] = (),
) -> ConvertReport:
    """Convert a Hugging Face directory or a GGUF file.

    A conversion of the same source that is there already is brought up to date: if only what stands beside the weights
    has changed (the config, the tokenizer, a template), this is written anew and the weights stay, with the codes that
    they have; if weights or options have changed, they are converted anew and take the old ones' place when they are
    complete.

    Args:
        src: what to convert.
        dst: the directory to create, fill (if it is empty) or bring up to date.
        format, group_size, dtype, dither: see :class:`Options`.
        calibration: who knows the model's activations; its codes are then chosen for them. The codes of ``e3m0``
            follow from the weights alone, so there it changes nothing.
        progress: called with counts of weights, before with counts of bytes while large files are read.
        threads: how many to use; None for all cores.
        replace_other: also replace a conversion of another model.
        relatives: conversions elsewhere, whose weights are shared (hard links) if they are the same.

    Raises:
        SpeqError: the source cannot be read or changes meanwhile, the options do not fit it, ``dst`` is something else
            or another model, no space.
    """
    known = identity_for(calibration, format)
    options = Options(format, group_size, dtype, dither, known)
    options.specs()
    target = destination(dst)
    finish_left(target)
    begin = time.perf_counter()
    before = _stamps(src)
    job = job_of(identity(src, progress), options)
    finish_left(target, job)
    if job_at(target) == job:
        clear_left(target)
        return replace(report_of(target), path=dst)
    _check_replaced(dst, target, src, job, replace_other)
    task = _Task(src, before, options, job, progress, checked_threads(threads))
    with workplace(target, job, src) as work:
        if job_at(target) == job:  # another process was faster
            return replace(report_of(target), path=dst)
        said = task.what_changes(target)
        base = next(filter(None, (task.reusable(path) for path in (target, *relatives))), None)
        if base is not None:
            said += task.beside(base, work)
        elif calibration is None or known is None:
            task.split(work.directory, work, options, job)
        else:
            plain = replace(options, calibration=None)
            plain_job = job_of(job["source"], plain)
            if not (is_converted(work.plain) and job_at(work.plain) == plain_job):
                work.plain.mkdir(exist_ok=True)
                task.split(work.plain, work, plain, plain_job)
            task.recode(work, calibration)
        work.settle()
    clear_left(target)
    report = report_of(target)
    return replace(report, path=dst, seconds=time.perf_counter() - begin, notes=said + report.notes)


class _Task:
    """What is to be done, and the source, which is opened when it is needed."""

    def __init__(
        self,
        src: Path,
        before: list[list[int]],
        options: Options,
        job: dict[str, Any],
        progress: Progress | None,
        threads: int,
    ) -> None:
        self.src, self.options, self.job = src, options, job
        self._before, self._progress, self._threads = before, progress, threads
        self._source: Source | None = None

    def source(self) -> Source:
        """The source under the names that the model knows, compared with its config."""
        if self._source is None:
            seed = self.options.dither
            self._source = fit_source(open_source(self.src) if seed is None else DitheredSource(self.src, seed))
        return self._source

    def split(self, directory: Path, work: Workplace, options: Options, job: dict[str, Any]) -> None:
        """Split the source's matrices, and write what stands beside them."""
        source = self.source()
        names = [info.name for info in source.tensors]
        written = directory / WEIGHTS
        check_space(directory, estimate(source, options) - _size(written), "the conversion")
        writer = WeightsWriter(directory, job, names)
        try:
            split_tensors(source, options, writer, work.kept, self._progress, self._threads)
            writer.finish()
        finally:
            writer.close()
        self._check_unchanged()
        records = [writer.records[name] for name in names]
        notes = split_notes(source, options, records)
        manifest = manifest_of(origin_of(source), options, job, records, notes, source.originals)
        complete(directory, _files(source), to_json(manifest))

    def recode(self, work: Workplace, calibration: Calibration) -> None:
        """Choose the codes of the plain conversion anew."""
        model = load_converted(work.plain, verify=False)
        names = [record.name for record in model.records]
        written, size = work.directory / WEIGHTS, _size(work.plain / WEIGHTS)
        check_space(work.directory, size + size // 20 - _size(written), "the calibration")
        writer = WeightsWriter(work.directory, self.job, names)
        try:
            notes = model.notes + recode(model, calibration, writer, work.kept, self._progress, self._threads)
            writer.finish()
        finally:
            writer.close()
        files = {
            str(path.relative_to(work.plain)): path.read_bytes()
            for path in work.plain.rglob("*")
            if path.is_file() and path.name not in (MANIFEST, WEIGHTS, *WeightsWriter.own_files)
        }
        records = [writer.records[name] for name in names]
        manifest = manifest_of(
            model.source | asdict(self.options), self.options, self.job, records, notes, model.originals
        )
        complete(work.directory, files, to_json(manifest))

    def what_changes(self, target: Path) -> list[str]:
        """A line about the conversion that is there and why it is done again; none if nothing is there."""
        old = job_at(target)
        if old is None:
            return []
        if not self._differs_in_source_alone(old):
            return [f"{target.name} was converted with other options or by another release: it is converted anew"]
        if not self._has_same_weights(old):
            return [f"the weights of {target.name} have changed: it is converted anew"]
        return []

    def reusable(self, path: Path) -> Converted | None:
        """A conversion whose weights are those that this one would have, undamaged; None for any other."""
        old = job_at(path)
        if old is None or not self._differs_in_source_alone(old) or not self._has_same_weights(old):
            return None
        try:
            base = load_converted(path)
        except SpeqError:
            return None
        may_be_calibrated = self.options.calibration is not None and "tokenizer.json" in self.source().files
        return None if was_refused(base.notes) and may_be_calibrated else base

    def _differs_in_source_alone(self, old: dict[str, Any]) -> bool:
        return {**old, "source": None} == {**self.job, "source": None}

    def _has_same_weights(self, old: dict[str, Any]) -> bool:
        return same_weights(str(old.get("source")), self.job["source"])

    def beside(self, base: Converted, work: Workplace) -> list[str]:
        """Write what stands beside the weights, which are those of ``base``; returns what there is to tell of it."""
        source = self.source()
        files = _files(source)
        said: list[str] = []
        if base.path == work.target:
            changed = [name for name in files if _content(base.path / name) != files[name]]
            said = [f"the weights are as they were; written anew: {', '.join(changed) or MANIFEST}"]
        elif not (work.directory / WEIGHTS).exists():
            _share(base.path / WEIGHTS, work.directory / WEIGHTS)
        self._check_unchanged()
        notes = split_notes(source, self.options, base.records) + calibration_notes(base.notes)
        manifest = manifest_of(origin_of(source), self.options, self.job, base.records, notes, source.originals)
        complete(work.directory, files, to_json(manifest))
        return said

    def _check_unchanged(self) -> None:
        if _stamps(self.src) != self._before and identity(self.src) != self.job["source"]:
            raise SpeqError(f"{self.src} has changed while it was converted; convert it again")


def _check_replaced(dst: Path, target: Path, src: Path, job: dict[str, Any], replace_other: bool) -> None:
    """Refuse to replace a conversion of another model, which may be all that there is of it.

    Raises:
        SpeqError: it is.
    """
    if not is_converted(target) or replace_other:
        return
    old, manifest = job_at(target) or {}, source_at(target)
    if same_weights(str(old.get("source")), job["source"]) or manifest.get("file") == Path(os.path.abspath(src)).name:
        return
    raise SpeqError(
        f"{dst} is a conversion of another model ({manifest.get('file') or 'unknown'}); choose another name, or use "
        "--force to replace it"
    )


def _files(source: Source) -> dict[str, bytes]:
    return source.files | {"config.json": to_json(source.config)}


def _stamps(src: Path) -> list[list[int]]:
    """Changes when a file of the source does."""
    if not src.exists():
        raise SpeqError(f"{src} does not exist")
    return [stamp(path) for path in sorted(src.iterdir()) if path.is_file()] if src.is_dir() else [stamp(src)]


def _share(weights: Path, new: Path) -> None:
    """Give a file a second name by a hard link, or copy it where there are none."""
    try:
        os.link(weights, new)
    except OSError:
        check_space(new.parent, _size(weights), "the conversion")
        shutil.copyfile(weights, new)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
