"""From a component in Amaranth to a netlist of a library's cells, by yosys and ABC for least area."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.hardware.synthesis.liberty import Library, read_library
from speq.hardware.synthesis.netlist import Netlist, read_netlist
from speq.hardware.synthesis.neutral import write_neutral_library
from speq.hardware.yosys import run_yosys

LIBRARIES = {
    "osu018": Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib"),
    "osu035": Path("/usr/share/qflow/tech/osu035/osu035_stdcells.lib"),
}
"""Real libraries where Debian's packages qflow-tech-osu018 and qflow-tech-osu035 put them: 0.18 and 0.35 um."""

NEUTRAL = "neutral"

# The same for every design. `amap` covers for area alone; yosys' own script ends in a mapper for delay.
_ABC = "+strash;&get,-n;&fraig,-x;&put;scorr;dc2;dc2;dch,-f;amap,-m;topo"

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


def installed_libraries() -> list[str]:
    """The names of all libraries that can be used here; the neutral one always can."""
    return [name for name, path in LIBRARIES.items() if path.exists()] + [NEUTRAL]


def synthesise(component: Any, library: str) -> Netlist:
    """Map a component to a library by name.

    Raises SpeqError if the library is unknown or not installed, the hardware extra is missing, or yosys fails.
    """
    try:
        from amaranth.back import rtlil
    except ImportError as error:
        raise SpeqError("speq hw needs the hardware extra: pip install 'speq[hardware]'") from error

    design = rtlil.convert(component, name="top")
    with tempfile.TemporaryDirectory(prefix="speq-synthesis-") as name:
        directory = Path(name)
        cells = _install(library, directory / "cells.lib")
        (directory / "design.il").write_text(design, encoding="utf-8")
        (directory / "map.ys").write_text(_SCRIPT, encoding="utf-8")
        run_yosys(["script map.ys"], directory)
        return read_netlist(directory / "design.json", cells)


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
