"""Reports: what the JSON holds, how tables look, and that bad files are refused in one line."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from speq.bench.report import Column, Report, Table, check_writable, read_json, write_json
from speq.errors import SpeqError

COLUMNS = (Column("name", "name"), Column("seconds", "ms", ".1f", 1e3), Column("missing", "?", ".2f"))


@pytest.fixture
def report():
    rows = [{"name": "a", "seconds": 0.25, "extra": 7}, {"name": "b", "seconds": 1.0}]
    table = Table("things", "Some things", COLUMNS, rows)
    return Report("kernels", {"name": "tiny"}, {"processor": "P", "threads": 2}, {"rounds": 3}, [table], ["a note"])


def test_the_json_has_the_numbers_and_where_they_come_from(report, tmp_path):
    write_json(report, tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content == read_json(tmp_path / "out.json")
    assert set(content) == {
        *("schema", "kind", "date", "machine", "versions", "model", "settings", "notes", "results"),
    }
    assert (content["schema"], content["kind"], content["notes"]) == (1, "kernels", ["a note"])
    assert content["results"] == {"things": report.tables[0].rows}
    assert {"python", "speq", "numpy"} <= set(content["versions"])


def test_tables_show_the_columns_in_their_units(report):
    out = io.StringIO()
    report.show(Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert any("Some things" in line for line in lines)
    assert any("250.0" in line and "a" in line for line in lines)
    assert "note: a note" in lines
    assert "processor P, threads 2" in lines[-1]


def test_bad_files_are_refused(tmp_path):
    check_writable(None)
    check_writable(tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    for path in (tmp_path, tmp_path / "no" / "such.json"):
        with pytest.raises(SpeqError, match="cannot write"):
            check_writable(path)
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "other.json").write_text('{"schema": 99, "results": {}}')
    for name, said in (("none.json", "cannot read"), ("text.json", "not JSON"), ("other.json", "no report")):
        with pytest.raises(SpeqError, match=said):
            read_json(tmp_path / name)
