"""A converted checkpoint, mapped into memory as it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.bits import Spec, SplitTensor, to_float32
from speq.bits.tensor import PLANES
from speq.checkpoint.huggingface import read_json
from speq.checkpoint.layout import FORMAT_VERSION, MANIFEST, WEIGHTS, Record, checksum
from speq.checkpoint.safetensors import SafetensorsFile
from speq.errors import SpeqError
from speq.processors import map_in_threads

_VERIFY_THREADS = 2  # two read as fast as a disk gives
CONVERT_AGAIN = "delete the directory and convert the original again"


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        path: its directory.
        config: the Hugging Face config.
        spec: the format of the matrices (of most weights, where several dtypes are mixed).
        split: the weight matrices by Hugging Face name; their planes are read-only views of the file.
        raw: all other float tensors, widened to float32.
        raw_dtypes: the stored type of each of those, a safetensors name.
        notes: what conversion changed or kept that the user should know.
        source: where it came from: ``name``, ``file``, and the options of the conversion.
        tokenizer: path of ``tokenizer.json``, None when there is none.
        records: the manifest's record of every tensor, in stored order.
    """

    path: Path
    config: dict[str, Any]
    spec: Spec
    split: dict[str, SplitTensor]
    raw: dict[str, NDArray[np.float32]]
    raw_dtypes: dict[str, str]
    notes: list[str]
    source: dict[str, Any]
    tokenizer: Path | None
    records: list[Record]

    @property
    def bytes(self) -> int:
        """Size of the weights on disk."""
        return (self.path / WEIGHTS).stat().st_size

    @property
    def bits_per_weight(self) -> float:
        """All planes of the matrices, in bits per weight."""
        weights = sum(tensor.shape[0] * tensor.shape[1] for tensor in self.split.values())
        stored = sum(plane.nbytes for tensor in self.split.values() for plane in tensor.planes().values())
        return 8 * stored / max(weights, 1)


def is_converted(path: Path) -> bool:
    """Whether a directory holds a converted checkpoint (of any format version)."""
    return (path / MANIFEST).is_file()


def load_converted(path: Path, *, verify: bool = True, threads: int | None = None) -> Converted:
    """Map a converted checkpoint.

    Args:
        path: its directory.
        verify: compare every stored array with its checksum, which reads all of the file once.
        threads: at most so many of them; None for as many as pay.

    Raises:
        SpeqError: a file is missing or truncated, a tensor does not match its checksum, or the format version is
            another.
    """
    manifest, records, specs = read_manifest(path)
    config = read_json(path / "config.json", f"{path} has no config.json; {CONVERT_AGAIN}")
    file = SafetensorsFile(path / WEIGHTS)
    if verify:
        _verify(file, records, min(threads or _VERIFY_THREADS, _VERIFY_THREADS))
    split: dict[str, SplitTensor] = {}
    raw: dict[str, NDArray[np.float32]] = {}
    raw_dtypes: dict[str, str] = {}
    weights_of = [0] * len(specs)
    for record in records:
        if record.spec is not None:
            split[record.name] = split_tensor(file, record, specs[record.spec])
            weights_of[record.spec] += record.shape[0] * record.shape[1]
        elif record.dtype in ("F16", "BF16", "F32", "F64"):
            raw[record.name] = widen(file.array(record.name), record.dtype)
            raw_dtypes[record.name] = record.dtype
    tokenizer = path / "tokenizer.json"
    return Converted(
        path=path,
        config=config,
        spec=specs[int(np.argmax(weights_of))],
        split=split,
        raw=raw,
        raw_dtypes=raw_dtypes,
        notes=list(manifest.get("notes", [])),
        source=dict(manifest.get("source", {})),
        tokenizer=tokenizer if tokenizer.is_file() else None,
        records=records,
    )


def read_manifest(path: Path) -> tuple[dict[str, Any], list[Record], list[Spec]]:
    """The manifest as it is, its records and its specs.

    Raises:
        SpeqError: missing or damaged manifest, or another format version.
    """
    manifest = read_json(path / MANIFEST, f"{path} is no converted checkpoint: it has no {MANIFEST}")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise SpeqError(
            f"{path} has format version {version}, this speq reads version {FORMAT_VERSION}; {CONVERT_AGAIN}"
        )
    try:
        records = [Record.from_dict(item) for item in manifest["tensors"]]
        specs = [Spec.from_dict(item) for item in manifest["specs"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SpeqError(f"{path / MANIFEST} is damaged; {CONVERT_AGAIN}") from None
    return manifest, records, specs


def split_tensor(file: SafetensorsFile, record: Record, spec: Spec) -> SplitTensor:
    """The split matrix of a record, its planes views of the file."""
    planes = {plane: file.array(f"{record.name}.{plane}") for plane in PLANES}
    rows, columns = record.shape
    try:
        tensor = SplitTensor.from_planes(spec, (rows, columns), planes)
    except SpeqError as error:
        raise SpeqError(f"{file.path}: tensor {record.name}: {error}") from None
    if tensor.escapes != int(tensor.escape_rows[-1]):
        raise SpeqError(f"{file.path}: the escapes of tensor {record.name} do not add up; {CONVERT_AGAIN}")
    return tensor


def widen(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """A stored float tensor, whose type has the safetensors name ``dtype``, as float32."""
    if dtype in ("F16", "BF16"):
        return to_float32(array, "fp16" if dtype == "F16" else "bf16")
    return array.astype(np.float32)


def _verify(file: SafetensorsFile, records: list[Record], threads: int) -> None:
    stored = [(record.name, name, value) for record in records for name, value in record.checksums.items()]

    def verify(item: tuple[str, str, str]) -> None:
        tensor, name, expected = item
        if checksum(file.array(name)) != expected:
            raise SpeqError(f"{file.path}: tensor {tensor} is corrupted (checksum of {name}); {CONVERT_AGAIN}")

    map_in_threads(verify, stored, threads)
