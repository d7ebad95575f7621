"""Verilog of a processing element, a tile or the whole accelerator, one file per module that occurs more than once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from amaranth.back import rtlil
from amaranth.lib import wiring

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.accelerator import Accelerator
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.element import ProcessingElement
from speq.hardware.rtl.parts import Collector
from speq.hardware.rtl.tile import Tile
from speq.hardware.yosys import run_yosys

Level: TypeAlias = Literal["pe", "tile", "array"]


def emit(
    level: Level, directory: Path, array: ArrayParameters, accumulator: AccumulatorParameters, core: type[Core]
) -> list[Path]:
    """Write a design's Verilog to ``directory``, which is made if need be; the files, the top module's first.

    The top module is called ``pe``, ``tile`` or ``accelerator``. Every file is written to a temporary name and renamed.
    Raises SpeqError if yosys is missing and OSError if the directory cannot be written.
    """
    parts = Collector()
    designs: dict[Level, Callable[[], tuple[str, wiring.Component]]] = {
        "pe": lambda: ("pe", ProcessingElement(accumulator, core)),
        "tile": lambda: ("tile", Tile(array, accumulator, core, parts)),
        "array": lambda: ("accelerator", Accelerator(array, accumulator, core, parts)),
    }
    top, design = designs[level]()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".emit-") as scratch:
        # Converting the top module is what collects its parts.
        modules = {top: rtlil.convert(design, name=top)}
        modules |= {name: rtlil.convert(part, name=name) for name, part in parts.modules.items()}
        _to_verilog(modules, Path(scratch))
        written = []
        for name in modules:
            os.replace(Path(scratch) / f"{name}.v", directory / f"{name}.v")
            written.append(directory / f"{name}.v")
    return written


def _to_verilog(modules: dict[str, str], scratch: Path) -> None:
    commands = []
    for name, text in modules.items():
        (scratch / f"{name}.il").write_text(text)
        commands += [
            f"read_rtlil {name}.il",
            "proc -nomux -norom",
            "memory_collect",
            "opt_merge",
            "opt_clean -purge",
            "attrmap -remove generator -remove top -remove src -remove amaranth.hierarchy -remove amaranth.decoding",
            "attrmap -modattr -remove generator -remove top -remove src -remove amaranth.hierarchy",
            f"write_verilog -norename {name}.v",
            "design -reset",
        ]
    run_yosys(commands, scratch)
