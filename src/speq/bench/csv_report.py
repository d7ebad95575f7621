"""One table of a report as CSV, for figures that are kept: every row says what, when, on which model and machine."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speq.bench.report import SCHEMA
from speq.checkpoint.storage import writing_to
from speq.errors import SpeqError

_ABOUT = ("benchmark", "model", "date", "processor", "threads")


def write_csv(report: Mapping[str, Any], table: str, path: Path) -> None:
    """Write a table of a report (as a dict, see :mod:`speq.bench.report`).

    Raises:
        SpeqError: the table is empty, or the file cannot be written.
    """
    rows = report["results"].get(table)
    if not rows:
        raise SpeqError(f"nothing was measured for {path}")
    machine = report["machine"]
    about = (table, report["model"]["name"], report["date"], machine["processor"], machine["threads"])
    with writing_to(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_ABOUT, *rows[0]])
        writer.writerows([*about, *("" if value is None else value for value in row.values())] for row in rows)


def read_csv(path: Path) -> dict[str, Any]:
    """A report with the one table that :func:`write_csv` wrote.

    Raises:
        SpeqError: there is no such file, it is of another kind, or a row of it is incomplete.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SpeqError(f"cannot read {path}: {error}") from None
    if not rows or not set(_ABOUT) <= set(rows[0]):
        raise SpeqError(f"{path} is no report as CSV: give one of benchmarks/kernels.py, passes.py or peers.py")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise SpeqError(f"{path}: row {number} has not as many fields as the header: write the file again")
    first = rows[0]
    found = [{key: _value(text) for key, text in row.items() if key not in _ABOUT} for row in rows]
    return {
        "schema": SCHEMA,
        "kind": first["benchmark"],
        "date": first["date"],
        "model": {"name": first["model"]},
        "machine": {"processor": first["processor"], "threads": int(first["threads"])},
        "results": {first["benchmark"]: found},
    }


def _value(text: str) -> Any:
    """A number where the text is one, None where it is empty."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"": None, "True": True, "False": False}.get(text, text)
