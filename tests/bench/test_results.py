"""Figures that are kept: one schema, whatever was measured, and what is in benchmarks/results has it."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest

from speq.bench import results
from speq.bench.results import SHAPES, Origin, figures, read_csv, rows_of, table_figures, write_csv
from speq.errors import SpeqError

KEPT = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.csv"))
ORIGIN = Origin("2026-01-02T03:04:05+00:00", "abc1234", "P, 2 threads, avx2", "tiny")
PRODUCT = {"operator": "q, k, v", "kind": "draft", "tokens": 1, "seconds": 0.25, "bytes": 7}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_has_the_schema(path):
    found = read_csv(path)
    assert {each.table for each in found} <= set(SHAPES)
    assert all(re.fullmatch("[0-9a-f]{7,}", each.commit) for each in found)
    assert len({(each.machine, each.model, each.what, each.kind, each.tokens) for each in found}) == len(found)


def test_some_results_are_kept():
    assert len(KEPT) > 10


def test_the_header_is_the_one_that_everybody_knows(tmp_path):
    write_csv(table_figures(ORIGIN, "kernels", [PRODUCT]), tmp_path / "k.csv")
    with (tmp_path / "k.csv").open(newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["date", "commit", "machine", "model", "what", "kind", "tokens", "value", "unit"]
    about = ["2026-01-02T03:04:05+00:00", "abc1234", "P, 2 threads, avx2", "tiny"]
    assert first == [*about, "kernels.seconds", "q, k, v / draft", "1", "0.25", "s"]
    assert second == [*about, "kernels.bytes", "q, k, v / draft", "1", "7", "B"]


def test_every_table_comes_back_from_a_file(tmp_path):
    for table, shape in SHAPES.items():
        rows = []
        for number in (1, 2):
            row = {name: f"{name} {number}" for name in shape.names}
            if shape.tokens:
                row[shape.tokens] = number
            for name, unit in shape.units.items():
                row[name] = number == 1 if unit == "bool" else number / 3
            rows.append(row)
        found = table_figures(ORIGIN, table, rows if shape.names or shape.tokens else rows[:1])
        write_csv(found, tmp_path / "table.csv")
        assert read_csv(tmp_path / "table.csv") == found
        assert rows_of(found, table) == (rows if shape.names or shape.tokens else rows[:1])


def test_a_name_that_looks_like_several_stays_one(tmp_path):
    row = {"draft": "self:3", "category": "maths / hard", "prompt": "q / 1", "new_tokens": 5, "speed_up": 2.0}
    write_csv(table_figures(ORIGIN, "spec_prompts", [row]), tmp_path / "s.csv")
    assert rows_of(read_csv(tmp_path / "s.csv"), "spec_prompts") == [{**row, "category": "maths/hard", "prompt": "q/1"}]


def test_what_was_not_measured_is_left_out():
    (row,) = rows_of(
        table_figures(ORIGIN, "passes", [{"kind": "draft", "tokens": 1, "low": None, "high": 2}]), "passes"
    )
    assert row == {"kind": "draft", "tokens": 1, "high": 2}


def test_a_report_gives_its_figures_with_their_origin():
    report = {
        "date": ORIGIN.date,
        "machine": {"processor": "P", "threads": 2, "isa": "avx2"},
        "versions": {"speq": "0.1.0", "commit": "abc1234"},
        "model": {"name": "tiny"},
        "results": {"kernels": [PRODUCT], "remarks": [{"a": 1}]},
    }
    assert figures(report) == table_figures(ORIGIN, "kernels", [PRODUCT])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "a,b\n1,2\n", "holds no figures"),
        (lambda text: "", "holds no figures"),
        (lambda text: text[: text.rindex(",")], "line 3: 8 fields instead of 9"),
        (lambda text: text.rstrip() + ",1\n", "line 3: 10 fields instead of 9"),
        (lambda text: text.replace("kernels.bytes", "kernels.words"), "line 3: this version knows no figure"),
        (lambda text: text.replace("0.25,s", "0.25,ms"), "line 2: kernels.seconds is in s, not 'ms'"),
        (lambda text: text.replace("0.25", "fast"), "line 2: the value 'fast' is no number"),
        (lambda text: text.replace('draft",1,0', 'draft",1.5,0'), "line 2: 1.5 is no number of tokens"),
        (lambda text: text.replace(" / draft", ""), "line 2: the kind 'q, k, v' has not 2 parts"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, change, said):
    path = tmp_path / "k.csv"
    write_csv(table_figures(ORIGIN, "kernels", [PRODUCT]), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(SpeqError, match=re.escape(said)):
        read_csv(path)


def test_missing_files_and_empty_tables_are_refused(tmp_path):
    with pytest.raises(SpeqError, match="cannot read"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(SpeqError, match="nothing was measured"):
        write_csv([], tmp_path / "new.csv")
    assert not list(tmp_path.iterdir())


def test_the_commit_is_that_of_the_checkout_of_speq_alone(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        call = ("git", *who, "-C", str(tmp_path), *arguments)
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    home = tmp_path / "speq" / "bench"
    home.mkdir(parents=True)
    module = home / "results.py"
    module.write_text("first")
    monkeypatch.setattr(results, "__file__", str(module))
    results.commit.cache_clear()
    try:
        git("init", "-q")
        (tmp_path / "other").write_text("someone else's")
        git("add", "other")
        git("commit", "-qm", "Begin")
        assert results.commit() == results.version("speq")  # installed in the directory of another project
        git("add", ".")
        git("commit", "-qm", "Take speq in")
        results.commit.cache_clear()
        assert results.commit() == git("rev-parse", "--short", "HEAD")
        (tmp_path / "other").write_text("changed")
        results.commit.cache_clear()
        assert results.commit() == git("rev-parse", "--short", "HEAD")
        module.write_text("second")
        results.commit.cache_clear()
        assert results.commit() == git("rev-parse", "--short", "HEAD") + "-dirty"
    finally:
        results.commit.cache_clear()
