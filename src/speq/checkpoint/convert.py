"""Converting a checkpoint: every weight matrix is split into draft codes and residuals, everything else is kept as it
is.

One tensor is in memory at a time. The work happens in a hidden directory beside the destination, which is renamed at
the end; interrupted, it is continued from the last finished tensor when the same conversion is asked for again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from speq.bits import Spec, encode
from speq.bits.spec import Dtype, Format
from speq.bits.tensor import grid
from speq.checkpoint.converted import is_converted, read_manifest
from speq.checkpoint.layout import FORMAT_VERSION, MANIFEST, WEIGHTS, Record, stored_planes
from speq.checkpoint.rounding import STORED, count_not_finite, read_matrix, rounding_notes, target_dtype
from speq.checkpoint.source import Source, TensorInfo, identity, open_source
from speq.checkpoint.storage import Progress, check_space, exclusive, make_dir, writing_to
from speq.checkpoint.writer import WeightsWriter
from speq.errors import SpeqError
from speq.processors import default_threads


@dataclass(frozen=True)
class Options:
    """How to convert: split format, group size, 16-bit type (None: the source's own), seed of noise (None: none)."""

    format: Format = "nested"
    group_size: int = 64
    dtype: Dtype | None = None
    dither: int | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in STORED:
            raise SpeqError(f"unknown dtype '{self.dtype}'; choose fp16 or bf16")

    def specs(self) -> tuple[Spec, ...]:
        """The specs that matrices may get: one, or one for each 16-bit type; SpeqError for an unknown choice."""
        dtypes: tuple[Dtype, ...] = ("bf16", "fp16") if self.dtype is None else (self.dtype,)
        return tuple(Spec.default(self.format, dtype, self.group_size) for dtype in dtypes)


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        path: the converted directory.
        weights: weights in split matrices; ``escapes`` of them are kept in side lists.
        source_bytes, bytes: size of the weights on disk, before and after.
        bits_per_weight: of all planes of the split matrices.
        seconds: time it took; 0 when the same conversion was there already.
        notes: what the user should know, one line each.
    """

    path: Path
    weights: int
    escapes: int
    source_bytes: int
    bytes: int
    bits_per_weight: float
    seconds: float
    notes: list[str]


def convert(
    src: Path,
    dst: Path,
    *,
    format: Format = "nested",
    group_size: int = 64,
    dtype: Dtype | None = None,
    dither: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
    check: Callable[[dict[str, Any]], object] | None = None,
) -> ConvertReport:
    """Convert a Hugging Face directory or a GGUF file.

    Args:
        src: what to convert.
        dst: the directory to create.
        format, group_size, dtype, dither: see :class:`Options`.
        progress: called with counts of weights.
        threads: how many to use; None for all cores.
        check: called with the config before any work, to refuse a model by raising.

    Raises:
        SpeqError: the source cannot be read, the options do not fit it, ``dst`` exists and is something else, no space.
    """
    options = Options(format, group_size, dtype, dither)
    job = job_of(identity(src), options)
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        return _existing(dst, job)
    begin = time.perf_counter()
    source = open_source(src, dither=dither)
    if check is not None:
        check(source.config)
    partial = dst.absolute().with_name(f".{dst.name}.partial")
    done = (partial / WEIGHTS).stat().st_size if (partial / WEIGHTS).exists() else 0
    check_space(partial, _estimate(source, options) - done, "the conversion")
    make_dir(partial)
    with writing_to(dst.parent, "free some and run again: it continues there"), exclusive(partial / ".lock"):
        writer = WeightsWriter(partial, job, [info.name for info in source.tensors])
        try:
            notes = _add_tensors(source, options, writer, progress, threads or default_threads())
            writer.finish()
        finally:
            writer.close()
        for name, content in (source.files | {"config.json": _to_json(source.config)}).items():
            (partial / name).write_bytes(content)
        manifest = _manifest(source, options, job, writer, notes)
        (partial / MANIFEST).write_bytes(_to_json(manifest))
        writer.forget()
        (partial / ".lock").unlink()
        if dst.exists():
            dst.rmdir()
        partial.rename(dst)
    return _report(dst, manifest, time.perf_counter() - begin)


def job_of(source_identity: str, options: Options) -> dict[str, Any]:
    """What tells one conversion from another: the source's identity, the options and the formats they stand for."""
    return {
        "format_version": FORMAT_VERSION,
        "source": source_identity,
        "options": asdict(options),
        "specs": [spec.to_dict() for spec in options.specs()],
    }


def _add_tensors(
    source: Source, options: Options, writer: WeightsWriter, progress: Progress | None, threads: int
) -> list[str]:
    """Split or copy every tensor that is not there yet; returns what there is to note."""
    specs = options.specs()
    dtype_of = {
        info.name: target_dtype(info, source.tensors, options.dtype) for info in source.tensors if info.is_matrix
    }
    done, total = 0, sum(info.size for info in source.tensors)
    for info in source.tensors:
        if progress is not None:
            progress("converting", done, total)
        if info.name not in writer.records:
            if info.is_matrix:
                _add_matrix(source, info, specs, dtype_of[info.name], writer, threads)
            else:
                _add_whole(source, info, writer)
        done += info.size
    if progress is not None:
        progress("converting", total, total)
    unusual = [
        f"{record.name} has {record.not_finite} weights that are NaN or infinite, kept exactly"
        for record in writer.records.values()
        if record.not_finite
    ]
    return source.notes + rounding_notes(source, dtype_of) + unusual


def _add_matrix(
    source: Source, info: TensorInfo, specs: tuple[Spec, ...], dtype: Dtype, writer: WeightsWriter, threads: int
) -> None:
    matrix = read_matrix(source, info, dtype, threads)
    index = next(i for i, spec in enumerate(specs) if spec.dtype == dtype)
    tensor = encode(matrix.bits, specs[index], threads=threads)
    record = Record(info.name, info.shape, STORED[dtype], index, not_finite=matrix.not_finite, escapes=tensor.escapes)
    writer.add(record, stored_planes(info.name, tensor))


def _add_whole(source: Source, info: TensorInfo, writer: WeightsWriter) -> None:
    array = source.read(info.name)
    dtype = "F32" if info.quantised else info.dtype
    writer.add(
        Record(info.name, info.shape, dtype, None, not_finite=count_not_finite(array, dtype)),
        {info.name: (dtype, array)},
    )


def _manifest(
    source: Source, options: Options, job: dict[str, Any], writer: WeightsWriter, notes: list[str]
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "source": {
            "name": source.name,
            "file": source.path.name,
            "bytes": sum(file.stat().st_size for file in source.weight_files),
            **asdict(options),
        },
        "job": job,
        "notes": notes,
        "specs": [spec.to_dict() for spec in options.specs()],
        "tensors": [writer.records[info.name].to_dict() for info in source.tensors],
    }


def _existing(dst: Path, job: dict[str, Any]) -> ConvertReport:
    """The report of a conversion that is there already, if it is the same one."""
    if is_converted(dst):
        manifest, _, _ = read_manifest(dst)
        if manifest.get("job") == job:
            return _report(dst, manifest, 0.0)
    raise SpeqError(f"{dst} exists and is not this conversion; choose another name or delete it")


def _report(dst: Path, manifest: dict[str, Any], seconds: float) -> ConvertReport:
    records = [Record.from_dict(item) for item in manifest["tensors"]]
    matrices = [record for record in records if record.spec is not None]
    weights = sum(prod(record.shape) for record in matrices)
    return ConvertReport(
        path=dst,
        weights=weights,
        escapes=sum(record.escapes for record in matrices),
        source_bytes=manifest["source"]["bytes"],
        bytes=(dst / WEIGHTS).stat().st_size,
        bits_per_weight=8 * sum(record.bytes for record in matrices) / max(weights, 1),
        seconds=seconds,
        notes=manifest["notes"],
    )


def _estimate(source: Source, options: Options) -> int:
    """Bytes that the result will take, a little more than likely."""
    spec = max(options.specs(), key=lambda spec: spec.residual_bits)
    total = 1 << 20
    for info in source.tensors:
        if info.is_matrix:
            row_blocks, blocks, groups = grid(spec, (info.shape[0], info.shape[1]))
            total += row_blocks * (blocks * (128 + 32 * spec.residual_bits) + 8 * groups) + info.size // 16
        else:
            total += info.size * 8
    return total


def _to_json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
