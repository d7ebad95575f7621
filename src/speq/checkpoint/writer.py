"""Writing the weights of a converted checkpoint, one tensor at a time, so that an interruption loses one tensor at
most.

The container's header stands before the data but is known only afterwards (escape lists have any length), so room for
it is left in front. A journal keeps one line for each finished tensor; opened again, the writer checks the finished
tensors against their checksums, cuts off whatever follows them and goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.layout import WEIGHTS, Record, as_bytes, checksum
from speq.checkpoint.safetensors import ALIGNMENT, Entry, encode_header

_JOB, _JOURNAL = "job.json", "journal.jsonl"
_ENTRY_BYTES = 150  # more than one array's line in the header takes, without its name
_ARRAYS_PER_TENSOR = 8


class WeightsWriter:
    """Writes ``weights.safetensors`` in a directory of its own, and continues what the same job left there.

    Args:
        directory: exists; holds nothing, or what an earlier writer left.
        job: what is being converted and how, JSON-able; work of another job is thrown away.
        names: names of all tensors to come.

    Raises:
        OSError: as files do.
    """

    def __init__(self, directory: Path, job: dict[str, Any], names: list[str]) -> None:
        self.directory = directory
        self.records: dict[str, Record] = {}
        self._entries: dict[str, Entry] = {}
        header = sum(_ARRAYS_PER_TENSOR * (_ENTRY_BYTES + len(json.dumps(name))) for name in names) + 2 * ALIGNMENT
        self._data_start = -(-header // ALIGNMENT) * ALIGNMENT
        self._end = 0
        if _read_json(directory / _JOB) == job and (directory / WEIGHTS).exists():
            self._resume()
        else:
            for name in (_JOURNAL, WEIGHTS):
                (directory / name).unlink(missing_ok=True)
            (directory / _JOB).write_text(json.dumps(job))
        self._file = (directory / WEIGHTS).open("r+b" if self.records else "w+b")
        self._file.truncate(self._data_start + self._end)
        self._file.seek(self._data_start + self._end)
        self._journal = (directory / _JOURNAL).open("a")

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

    def finish(self) -> None:
        """Write the header, which makes the container readable."""
        self._file.seek(0)
        self._file.write(encode_header(self._entries, {"format": "speq"}, total_bytes=self._data_start))
        self.close()

    def forget(self) -> None:
        """Leave only the container behind: there is nothing to continue any more."""
        for name in (_JOURNAL, _JOB):
            (self.directory / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what is finished can be continued later."""
        self._file.close()
        self._journal.close()

    def _resume(self) -> None:
        """Take over the finished tensors whose bytes are as they were written."""
        if not (self.directory / _JOURNAL).exists() or not (self.directory / WEIGHTS).stat().st_size:
            return
        data = np.memmap(self.directory / WEIGHTS, dtype=np.uint8, mode="r")
        lines: list[str] = []
        for line in (self.directory / _JOURNAL).read_text().splitlines():
            try:
                content = json.loads(line)
                record = Record.from_dict(content["record"])
                entries = {
                    name: Entry(e["dtype"], tuple(e["shape"]), e["begin"], e["end"])
                    for name, e in content["entries"].items()
                }
            except (ValueError, KeyError, TypeError):
                break
            if not all(
                checksum(data[self._data_start + entries[name].begin : self._data_start + entries[name].end]) == value
                for name, value in record.checksums.items()
            ):
                break
            lines.append(line)
            self.records[record.name] = record
            self._entries |= entries
            self._end = max(entry.end for entry in entries.values())
        (self.directory / _JOURNAL).write_text("".join(line + "\n" for line in lines))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
