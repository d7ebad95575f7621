"""A converted checkpoint: its layout on disk, shared by who writes it and who reads it, and the model mapped into
memory as it lies there.

    config.json, tokenizer.json, ...   carried along from the source
    speq.json                          format version, specs, source, notes, one record per tensor with checksums
    weights.safetensors                all planes, ``<tensor>.codes`` and so on, and whole tensors that are not matrices

A tensor starts at a multiple of 64 bytes; a ``<tensor>.pad`` fills the gap before the next, as the container allows
none. Codes and residual fill whole multiples of 64 bytes, so that codes, residual and scales are aligned to 64, the
escape lists naturally.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from speq.checkpoint.safetensors import ITEM_BYTES, SafetensorsFile
from speq.checkpoint.storage import read_json
from speq.errors import SpeqError
from speq.formats import Spec, SplitTensor, to_float32
from speq.formats.spec import Dtype
from speq.formats.tensor import PLANES
from speq.processors import map_in_threads

FORMAT_VERSION = 1
MANIFEST = "speq.json"
WEIGHTS = "weights.safetensors"

DTYPES: dict[str, Dtype] = {"F16": "fp16", "BF16": "bf16"}
"""The 16-bit types by their safetensors names."""
STORED: dict[str, str] = {dtype: stored for stored, dtype in DTYPES.items()}
"""The safetensors names of the 16-bit types."""

_VERIFY_THREADS = 2  # two read as fast as a disk gives
CONVERT_AGAIN = "delete the directory and convert the original again"
_STORED_TYPES = {"uint8": "U8", "uint16": "U16", "uint32": "U32"}


@dataclass(frozen=True)
class Record:
    """What the manifest says of a tensor.

    Attributes:
        name: Hugging Face name.
        shape: rows first.
        dtype: safetensors name of what it restores to.
        spec: index into the manifest's list of specs; None for a tensor that is stored whole.
        bytes: of all its stored arrays.
        not_finite: how many of its values are NaN or infinite.
        escapes: how many weights are in the side list.
        checksums: xxh3-64 of each stored array, by its name in the container, as hex.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: int | None
    bytes: int = 0
    not_finite: int = 0
    escapes: int = 0
    checksums: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"kind": "raw" if self.spec is None else "split"} | asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Record:
        """The record of a JSON form; KeyError, TypeError or ValueError when it is not one."""
        known = {key: value for key, value in data.items() if key != "kind"}
        record = Record(**known | {"shape": tuple(data["shape"])})
        counts = (*record.shape, record.bytes, record.not_finite, record.escapes)
        if not (
            isinstance(record.name, str)
            and all(_is_whole(count) and count >= 0 for count in counts)
            and record.dtype in ITEM_BYTES
            and (record.spec is None or _is_whole(record.spec))
            and all(isinstance(text, str) for pair in record.checksums.items() for text in pair)
        ):
            raise ValueError(data)
        return record


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """A contiguous array's bytes, without a copy."""
    return array.reshape(-1).view("u1").data


def checksum(array: NDArray[Any]) -> str:
    """xxh3-64 of a contiguous array's bytes, as hex."""
    return xxhash.xxh3_64_hexdigest(as_bytes(array))


def stored_planes(name: str, tensor: SplitTensor) -> dict[str, tuple[str, NDArray[Any]]]:
    """A split matrix's arrays by their names in the container, with their safetensors types."""
    return {f"{name}.{key}": (_STORED_TYPES[plane.dtype.name], plane) for key, plane in tensor.planes().items()}


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
        originals: the names that tensors had where they came from, of those that had others or several.
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
    originals: dict[str, list[str]]

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


class Description(NamedTuple):
    """What lies beside the weights of a converted checkpoint: its config, and its manifest as it is, with the records
    and the specs in it.
    """

    config: dict[str, Any]
    manifest: dict[str, Any]
    records: list[Record]
    specs: list[Spec]


def describe(path: Path) -> Description:
    """Read what lies beside the weights.

    Raises:
        SpeqError: a file is missing or damaged, or the format version is another.
    """
    manifest, records, specs = read_manifest(path)
    return Description(read_config(path), manifest, records, specs)


def load_converted(
    path: Path, *, verify: bool = True, threads: int | None = None, described: Description | None = None
) -> Converted:
    """Map a converted checkpoint.

    Args:
        path: its directory.
        verify: compare every stored array with its checksum, which reads all of the file once.
        threads: at most so many of them; None for as many as pay.
        described: what :func:`describe` has read, from a caller who looked at it before.

    Raises:
        SpeqError: a file is missing, truncated or damaged, a tensor does not match its checksum, or the format version
            is another.
    """
    config, manifest, records, specs = described or describe(path)
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
            raw[record.name] = widen(whole_tensor(file, record), record.dtype)
            raw_dtypes[record.name] = record.dtype
    tokenizer = path / "tokenizer.json"
    return Converted(
        path=path,
        config=config,
        spec=specs[int(np.argmax(weights_of))],
        split=split,
        raw=raw,
        raw_dtypes=raw_dtypes,
        notes=manifest["notes"],
        source=manifest["source"],
        tokenizer=tokenizer if tokenizer.is_file() else None,
        records=records,
        originals={name: names for name, names in original_names(manifest, records).items() if names != [name]},
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
        manifest = manifest | {"notes": manifest.get("notes", []), "source": manifest.get("source", {})}
        names = [record.name for record in records]
        is_whole = (
            len(set(names)) == len(names)
            and bool(specs)
            and all(record.spec is None or 0 <= record.spec < len(specs) for record in records)
            and all(isinstance(note, str) for note in manifest["notes"])
            and isinstance(manifest["source"], dict)
            and all(isinstance(original, str) for names in manifest.get("originals", {}).values() for original in names)
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        is_whole = False
    if not is_whole:
        raise SpeqError(f"{path / MANIFEST} is damaged; {CONVERT_AGAIN}")
    return manifest, records, specs


def read_config(path: Path) -> dict[str, Any]:
    """The config that lies beside converted weights.

    Raises:
        SpeqError: it is missing or no JSON object.
    """
    return read_json(path / "config.json", f"{path} has no config.json; {CONVERT_AGAIN}")


def original_names(manifest: dict[str, Any], records: list[Record]) -> dict[str, list[str]]:
    """The names of each tensor in the checkpoint that was converted."""
    others: dict[str, list[str]] = manifest.get("originals", {})
    return {record.name: others.get(record.name, [record.name]) for record in records}


def whole_tensor(file: SafetensorsFile, record: Record) -> NDArray[Any]:
    """The array of a tensor that is stored as it is."""
    array = file.array(record.name)
    if (file.entries[record.name].dtype, array.shape) != (record.dtype, record.shape):
        raise SpeqError(f"{file.path}: tensor {record.name} is not what {MANIFEST} says; {CONVERT_AGAIN}")
    return array


def split_tensor(file: SafetensorsFile, record: Record, spec: Spec) -> SplitTensor:
    """The split matrix of a record, its planes views of the file."""
    planes = {plane: file.array(f"{record.name}.{plane}") for plane in PLANES}
    if len(record.shape) != 2 or DTYPES.get(record.dtype) != spec.dtype:
        raise SpeqError(f"{file.path}: tensor {record.name} is not what {MANIFEST} says; {CONVERT_AGAIN}")
    try:
        return SplitTensor.from_planes(spec, (record.shape[0], record.shape[1]), planes)
    except SpeqError as error:
        raise SpeqError(f"{file.path}: tensor {record.name}: {error}") from None


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
