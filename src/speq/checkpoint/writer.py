"""Writing the weights of a converted checkpoint, one tensor at a time, so that an interruption loses one tensor at
most.

The container's header stands before the data but is known only afterwards (escape lists have any length), so room for
it is left in front. A journal keeps one line for each finished tensor; opened again, the writer cuts off whatever
follows them and goes on. From time to time the data is brought to the disk and the journal says so. What was written
after that is checked against its checksums first: little, so that a process that is killed soon gets beyond it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.safetensors import ALIGNMENT, Entry, encode_header
from speq.checkpoint.storage import read_json_if_whole, replace_file
from speq.checkpoint.store import WEIGHTS, Record, as_bytes, checksum

JOB, JOURNAL = "job.json", "journal.jsonl"
_ENTRY_BYTES = 150  # more than one array's line in the header takes, without its name
_ARRAYS_PER_TENSOR = 8
_SYNC_BYTES = 1 << 26


class WeightsWriter:
    """Writes ``weights.safetensors`` in a directory of its own, and continues what the same job left there.

    Args:
        directory: exists; holds nothing, or what an earlier writer left.
        job: what is being converted and how, JSON-able; work of another job is thrown away.
        names: names of all tensors to come.

    Attributes:
        own_files: names of the files that it needs while the work goes on.

    Raises:
        OSError: as files do.
    """

    own_files = (JOB, JOURNAL)

    def __init__(self, directory: Path, job: dict[str, Any], names: list[str]) -> None:
        self.directory = directory
        self.records: dict[str, Record] = {}
        self._entries: dict[str, Entry] = {}
        header = sum(_ARRAYS_PER_TENSOR * (_ENTRY_BYTES + len(json.dumps(name))) for name in names) + 2 * ALIGNMENT
        self._data_start = -(-header // ALIGNMENT) * ALIGNMENT
        self._end = self._synced = 0
        if read_json_if_whole(directory / JOB) == job and (directory / WEIGHTS).exists():
            self._resume()
        else:
            for name in (JOURNAL, WEIGHTS):
                (directory / name).unlink(missing_ok=True)
            replace_file(directory / JOB, json.dumps(job).encode())
        self._file = (directory / WEIGHTS).open("r+b" if self.records else "w+b")
        self._file.truncate(self._data_start + self._end)
        self._file.seek(self._data_start + self._end)
        self._journal = (directory / JOURNAL).open("a")

    def add(self, record: Record, arrays: dict[str, tuple[str, NDArray[Any]]]) -> None:
        """Append a tensor: ``arrays`` are its stored arrays by their names in the container, each with its
        safetensors type.

        The record's ``bytes`` and ``checksums`` are filled in here.
        """
        entries: dict[str, Entry] = {}
        end = self._end
        sums: dict[str, str] = {}
        for stored, (kind, array) in arrays.items():
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            entries[stored] = Entry(kind, array.shape, end, end + array.nbytes)
            self._file.write(as_bytes(array))
            sums[stored] = checksum(array)
            end += array.nbytes
        record = replace(record, bytes=end - self._end, checksums=sums)
        if end % ALIGNMENT:
            gap = ALIGNMENT - end % ALIGNMENT
            entries[f"{record.name}.pad"] = Entry("U8", (gap,), end, end + gap)
            self._file.write(bytes(gap))
            end += gap
        self._file.flush()
        self._entries |= entries
        self._end = end
        self.records[record.name] = record
        line = {"record": record.to_dict(), "entries": {key: asdict(value) for key, value in entries.items()}}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        if self._end - self._synced >= _SYNC_BYTES:
            os.fsync(self._file.fileno())
            self._synced = self._end
            self._journal.write(json.dumps({"synced": self._end}) + "\n")
            self._journal.flush()

    def finish(self) -> None:
        """Write the header, which makes the container readable."""
        self._file.seek(0)
        self._file.write(encode_header(self._entries, {"format": "speq"}, total_bytes=self._data_start))
        self.close()

    def close(self) -> None:
        """Close the files; what is finished can be continued later."""
        self._file.close()
        self._journal.close()

    def _resume(self) -> None:
        """Take over the finished tensors whose bytes are as they were written."""
        if not (self.directory / JOURNAL).exists() or not (self.directory / WEIGHTS).stat().st_size:
            return
        data = np.memmap(self.directory / WEIGHTS, dtype=np.uint8, mode="r")[self._data_start :]
        text = (self.directory / JOURNAL).read_bytes()
        lines: list[bytes] = []
        contents = _parsed(text)
        synced = max((content["synced"] for _, content in contents if "synced" in content), default=0)
        for line, content in contents:
            if "synced" in content:
                self._synced = content["synced"]
                lines.append(line)
                continue
            try:
                record = Record.from_dict(content["record"])
                entries = {
                    name: Entry(e["dtype"], tuple(e["shape"]), e["begin"], e["end"])
                    for name, e in content["entries"].items()
                }
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            end = max((entry.end for entry in entries.values()), default=self._end)
            if end > len(data) or (end > synced and not _is_whole(data, record, entries)):
                break
            lines.append(line)
            self.records[record.name] = record
            self._entries |= entries
            self._end = end
        good = b"".join(line + b"\n" for line in lines)
        if good != text:
            replace_file(self.directory / JOURNAL, good)


def _parsed(journal: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a journal, each with its content, up to one that is cut off."""
    contents: list[tuple[bytes, dict[str, Any]]] = []
    for line in journal.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not isinstance(content, dict):
            break
        contents.append((line, content))
    return contents


def _is_whole(data: NDArray[np.uint8], record: Record, entries: dict[str, Entry]) -> bool:
    return all(
        checksum(data[entries[name].begin : entries[name].end]) == value for name, value in record.checksums.items()
    )
