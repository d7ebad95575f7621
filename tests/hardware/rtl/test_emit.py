"""`speq hw emit`: complete Verilog that yosys reads back, and one clear line for what cannot be done."""

from __future__ import annotations

import re

import pytest

from speq.cli import run
from speq.hardware.yosys import run_yosys


@pytest.mark.parametrize(
    ("level", "variant", "top", "cores"),
    [("pe", "P2", "pe", 0), ("tile", "p3", "tile", 6), ("array", "P0", "accelerator", 6)],
)
def test_the_verilog_is_complete(tmp_path, capsys, level, variant, top, cores):
    directory = tmp_path / "new" / "verilog"
    assert run(["hw", "emit", level, str(directory), "--pe", variant, "--rows", "2", "--columns", "3"]) == 0
    files = capsys.readouterr().out.split()
    assert files[0] == str(directory / f"{top}.v")
    assert sorted(files) == sorted(map(str, directory.iterdir()))  # nothing temporary is left
    text = (directory / f"{top}.v").read_text()
    assert len(re.findall(r"^  core .*\(", text, re.MULTILINE)) == cores
    names = " ".join(path.name for path in directory.iterdir())
    run_yosys([f"read_verilog {names}", f"hierarchy -check -top {top}", "proc", "check -assert"], directory)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "0"], "rows is 0"),
        (["--columns", "4096"], "columns is 4096"),
        (["--burst", "2"], "burst is 2"),
        (["--integer-bits", "0"], "integer bit"),
    ],
)
def test_impossible_sizes_are_one_clear_line(tmp_path, capsys, options, message):
    assert run(["hw", "emit", "array", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["hw", "emit", "pe", str(tmp_path / "file" / "below")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
