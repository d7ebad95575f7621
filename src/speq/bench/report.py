"""A report: what was measured, on which machine, with which versions. Shown as tables, kept as JSON.

The JSON object has ``schema`` (this file's version number), ``kind`` (the name of the command), ``date``, ``machine``,
``versions`` (of Python and packages, and speq's ``commit``), ``model``, ``settings``, ``notes``, and ``results``: for
each table a list of rows with the plain numbers, in seconds, bytes and ratios. :mod:`speq.bench.results` keeps the same
figures as CSV.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speq.bench.results import commit
from speq.checkpoint.storage import writing_to
from speq.checkpoint.store import Converted
from speq.errors import SpeqError

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
_PACKAGES = ("speq", "numpy", "torch", "transformers", "llama-cpp-python", "openvino", "openvino-genai")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table on the screen: the key of the row, the heading, a factor, and a format specification."""

    key: str
    heading: str
    format: str = ""
    factor: float = 1.0

    def text(self, row: Row) -> str:
        value = row.get(self.key)
        if value is None:
            return ""
        return format(value if self.factor == 1 else value * self.factor, self.format)


@dataclass(frozen=True)
class Table:
    """Rows of one measurement and how to show them; not every key needs a column.

    Attributes:
        shown: rows for the screen where these are others, such as a summary; none at all hides the table there.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    shown: Sequence[Row] | None = None


@dataclass
class Report:
    """Everything about one run of a benchmark."""

    kind: str
    model: dict[str, Any]
    machine: dict[str, Any]
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "date": self.date,
            "machine": self.machine,
            "versions": versions(),
            "model": self.model,
            "settings": self.settings,
            "notes": self.notes,
            "results": {table.name: [dict(row) for row in table.rows] for table in self.tables},
        }

    def show(self, console: Console) -> None:
        """Print the tables, the notes and a line about the machine."""
        for table in self.tables:
            if table.shown is None or table.shown:
                show_table(console, table)
        for line in self.notes:
            console.print(f"note: {line}", style="dim", soft_wrap=True)
        about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in self.machine.items())
        console.print(about, style="dim", soft_wrap=True)


def row_of(item: Any, *properties: str) -> dict[str, Any]:
    """The fields of a dataclass and these of its properties."""
    return asdict(item) | {name: getattr(item, name) for name in properties}


def show_table(console: Console, table: Table) -> None:
    """Print one table."""
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", title_style="bold")
    for column in table.columns:
        shown.add_column(column.heading, justify="right" if column.format else "left")
    for row in table.rows if table.shown is None else table.shown:
        shown.add_row(*(column.text(row) for column in table.columns))
    console.print(shown)


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written, before any work.

    Raises:
        SpeqError: its directory does not exist or is not writable.
    """
    if path is None:
        return
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir():
        raise SpeqError(f"cannot write {path}: " + ("it is a directory" if path.is_dir() else "no such directory"))
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise SpeqError(f"cannot write {path}: permission denied")


def write_json(report: Report, path: Path) -> None:
    """Write the report; see the module for what is in it."""
    with writing_to(path):
        path.write_text(json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A report that :func:`write_json` wrote.

    Raises:
        SpeqError: there is no such file, or it is no report of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpeqError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise SpeqError(f"{path} is not JSON: give a file that speq bench wrote with --json") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "results" not in content:
        raise SpeqError(f"{path} is no report of speq bench, or of another version: write it again with --json")
    return content


def describe_model(name: str, converted: Converted) -> dict[str, Any]:
    """What the report says of a model; of a path only the last part, as the rest belongs to one machine."""
    return {
        "name": Path(name).name if Path(name).exists() else name,
        "source": str(converted.source.get("name", "")),
        "model_type": converted.config.get("model_type"),
        "format": converted.spec.format,
        "dtype": converted.spec.dtype,
        "group_size": converted.spec.group_size,
        "bytes": converted.bytes,
        "bits_per_weight": converted.bits_per_weight,
        "notes": converted.notes,
    }


def versions() -> dict[str, str]:
    """Python, the commit of speq, and the packages that figures depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "commit": commit()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
