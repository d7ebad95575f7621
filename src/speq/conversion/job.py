"""What a conversion is asked for, what it leaves in the manifest, and what it reports."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from speq.checkpoint.sources.source import Source
from speq.checkpoint.store import FORMAT_VERSION, STORED, WEIGHTS, Record, read_manifest
from speq.errors import SpeqError
from speq.formats import Spec
from speq.formats.spec import Dtype, Format


@dataclass(frozen=True)
class Options:
    """How to convert: split format, group size, 16-bit type (None: the source's own), seed of noise (None: none), and
    the identity of the calibration (None: none).
    """

    format: Format = "nested"
    group_size: int = 64
    dtype: Dtype | None = None
    dither: int | None = None
    calibration: str | None = None

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


def job_of(source_identity: str, options: Options) -> dict[str, Any]:
    """What tells one conversion from another: the source's identity, the options and the formats they stand for."""
    return {
        "format_version": FORMAT_VERSION,
        "source": source_identity,
        "options": asdict(options),
        "specs": [spec.to_dict() for spec in options.specs()],
    }


def origin_of(source: Source) -> dict[str, Any]:
    """What the manifest says of where the weights came from."""
    return {
        "name": source.name,
        "file": Path(os.path.abspath(source.path)).name,
        "bytes": sum(file.stat().st_size for file in source.weight_files),
    }


def manifest_of(
    origin: dict[str, Any],
    options: Options,
    job: dict[str, Any],
    records: list[Record],
    notes: list[str],
    originals: dict[str, list[str]],
) -> dict[str, Any]:
    """The manifest of a converted checkpoint; ``origin`` is the source's ``name``, ``file`` and ``bytes``, and
    ``originals`` has the names that tensors had there, where they are others.
    """
    return {
        "format_version": FORMAT_VERSION,
        "source": origin | asdict(options),
        "job": job,
        "notes": notes,
        "specs": [spec.to_dict() for spec in options.specs()],
        "tensors": [record.to_dict() for record in records],
    } | ({"originals": originals} if originals else {})


def report_of(dst: Path) -> ConvertReport:
    """The report of a finished conversion.

    Raises:
        SpeqError: its manifest cannot be read.
    """
    manifest, records, _ = read_manifest(dst)
    matrices = [record for record in records if record.spec is not None]
    weights = sum(prod(record.shape) for record in matrices)
    return ConvertReport(
        path=dst,
        weights=weights,
        escapes=sum(record.escapes for record in matrices),
        source_bytes=manifest["source"]["bytes"],
        bytes=(dst / WEIGHTS).stat().st_size,
        bits_per_weight=8 * sum(record.bytes for record in matrices) / max(weights, 1),
        seconds=0.0,
        notes=manifest["notes"],
    )


def to_json(content: Any) -> bytes:
    """As the files of a converted checkpoint are written."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
