"""What other simulators say of small products: SCALE-Sim 3.0.0 (cycles) and ZigZag 3.9.1 (latency and energy).

`python tests/hardware/reference_tools.py` writes their answers to tests/hardware/data; it needs the crosscheck extra
(pip install 'speq[crosscheck]'). The tests compare with these files, and with the packages where they are installed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

SCALESIM_GRIDS = ((4, 4), (8, 16), (16, 8), (32, 32))  # rows, columns
SCALESIM_PRODUCTS = ((1, 64, 128), (8, 32, 64), (5, 33, 65), (40, 17, 100), (33, 65, 31))  # tokens, outputs, inputs

# tokens, inputs, outputs, rows, columns
ZIGZAG_PRODUCTS = (
    (1, 1024, 1024, 1, 64),
    (1, 4096, 1024, 1, 64),
    (8, 1024, 1024, 8, 64),
    (8, 2048, 512, 8, 32),
    (64, 1024, 1024, 8, 64),
    (128, 512, 1024, 16, 32),
)
ZIGZAG_DRAM = 200  # bits per cycle: 25 GB/s at 1 GHz
MAC, SRAM_READ, SRAM_WRITE, DRAM = 1.155, 0.0415, 0.0554, 18.75  # pJ, and pJ per bit


def scalesim(dataflow: str, rows: int, columns: int, tokens: int, outputs: int, inputs: int) -> int:
    """The number of the last cycle, counted from 0, with enough bandwidth not to stall; ``dataflow`` is os or ws."""
    from scalesim.scale_sim import scalesim as simulate

    config = f"""[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {columns}
IfmapSramSzkB: 4096
FilterSramSzkB: 4096
OfmapSramSzkB: 4096
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth : 1000
Dataflow : {dataflow}
MemoryBanks: 1
ReadRequestBuffer: 64
WriteRequestBuffer: 64
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport : false
SparseRep : ellpack_block
OptimizedMapping : false
BlockSize : 8
RandomNumberGeneratorSeed : 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        (folder / "run.cfg").write_text(config)
        (folder / "product.csv").write_text(f"Layer,M,N,K,\nproduct,{tokens},{outputs},{inputs},\n")
        (folder / "layout.csv").write_text("Layer name,\n")
        simulate(
            save_disk_space=True,
            verbose=False,
            config=str(folder / "run.cfg"),
            topology=str(folder / "product.csv"),
            layout=str(folder / "layout.csv"),
            input_type_gemm=True,
        ).run_scale(top_path=name)
        header, row = list(csv.reader((folder / "run" / "COMPUTE_REPORT.csv").open()))[:2]
    return int(row[[cell.strip() for cell in header].index("Total Cycles")])


def zigzag(tokens: int, inputs: int, outputs: int, rows: int, columns: int) -> dict[str, float]:
    """Cycles and picojoules of a product with 16-bit operands.

    ``computing`` is the latency without first loading and last storing, ``latency`` the whole; ``energy`` is split into
    ``mac``, ``sram`` and ``dram``.
    """
    import yaml
    from zigzag.api import get_hardware_performance_zigzag

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        files = {
            "hardware": _hardware(rows, columns),
            "workload": _workload(tokens, inputs, outputs),
            "mapping": _mapping(rows, columns),
        }
        for file, content in files.items():
            (folder / f"{file}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        energy, latency, results = get_hardware_performance_zigzag(
            *(f"{folder}/{file}.yaml" for file in ("workload", "hardware", "mapping")),
            opt="latency",
            dump_folder=f"{folder}/out",
            pickle_filename=f"{folder}/out.pickle",
            loma_show_progress_bar=False,
        )
    result = results[0][1][0][0]
    memories = {str(operand): levels for operand, levels in result.mem_energy_breakdown.items()}
    return {
        "computing": float(result.latency_total0),
        "latency": float(latency),
        "energy": float(energy),
        "mac": float(result.mac_energy),
        "sram": float(memories["O"][1] + memories["I"][0] + memories["W"][0]),
        "dram": float(memories["O"][2] + memories["I"][1] + memories["W"][1]),
    }


def _hardware(rows: int, columns: int) -> dict[str, Any]:
    """An array with sums in place, 512 KiB for weights, 512 KiB for activations, and a DRAM."""

    def memory(size: int, read: float, write: float, operands: list[str], ports: list[Any], served: list[str]) -> Any:
        return {
            "size": size,
            "r_cost": read,
            "w_cost": write,
            "area": 0,
            "latency": 1,
            "auto_cost_extraction": False,
            "operands": operands,
            "ports": [
                {"name": name, "type": kind, "bandwidth_min": bits, "bandwidth_max": bits, "allocation": uses}
                for name, kind, bits, uses in ports
            ],
            "served_dimensions": served,
        }

    both = ["D1", "D2"]
    weights, activations = columns * 16, rows * 16  # bits per cycle at the edges of the array
    registers = [
        ("r_port_1", "read", 32, ["O, tl"]),
        ("r_port_2", "read", 32, ["O, th"]),
        ("w_port_1", "write", 32, ["O, fh"]),
        ("w_port_2", "write", 32, ["O, fl"]),
    ]
    weight_ports = [("r_port_1", "read", weights, ["I2, tl"]), ("w_port_1", "write", weights, ["I2, fh"])]
    activation_ports = [
        ("r_port_1", "read", activations, ["I1, tl", "O, tl", "O, th"]),
        ("w_port_1", "write", activations, ["I1, fh", "O, fh", "O, fl"]),
    ]
    dram_uses = [f"{operand}, {way}" for operand in ("I1", "I2") for way in ("fh", "tl")]
    dram_ports = [("rw_port_1", "read_write", ZIGZAG_DRAM, [*dram_uses, "O, fh", "O, tl", "O, fl", "O, th"])]
    size = 512 * 1024 * 8
    return {
        "name": "array",
        "memories": {
            "sums": memory(32, 0, 0, ["O"], registers, []),
            "weights": memory(size, SRAM_READ * weights, SRAM_WRITE * weights, ["I2"], weight_ports, both),
            "activations": memory(
                size, SRAM_READ * activations, SRAM_WRITE * activations, ["I1", "O"], activation_ports, both
            ),
            "dram": memory(10**12, DRAM * ZIGZAG_DRAM, DRAM * ZIGZAG_DRAM, ["I1", "I2", "O"], dram_ports, both),
        },
        "operational_array": {
            "input_precision": [16, 16],
            "unit_energy": MAC,
            "unit_area": 1,
            "dimensions": both,
            "sizes": [rows, columns],
        },
    }


def _workload(tokens: int, inputs: int, outputs: int) -> list[dict[str, Any]]:
    return [
        {
            "id": 0,
            "name": "product",
            "operator_type": "Gemm",
            "equation": "O[d0][d2]+=I[d0][d1]*W[d1][d2]",
            "dimension_relations": [],
            "loop_dims": ["D0", "D1", "D2"],
            "loop_sizes": [tokens, inputs, outputs],
            "operand_precision": {"O": 16, "O_final": 16, "W": 16, "I": 16},
            "operand_source": {"I": 0, "W": 0},
        }
    ]


def _mapping(rows: int, columns: int) -> list[dict[str, Any]]:
    return [
        {
            "name": "default",
            "spatial_mapping": {"D1": [f"D0, {rows}"], "D2": [f"D2, {columns}"]},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    ]


def main() -> None:
    """Write the answers of both to the data directory."""
    rows: list[dict[str, Any]] = []
    for dataflow in ("os", "ws"):
        for grid in SCALESIM_GRIDS:
            for product in SCALESIM_PRODUCTS:
                names = ("dataflow", "rows", "columns", "tokens", "outputs", "inputs", "last_cycle")
                last = scalesim(dataflow, *grid, *product)
                rows.append(dict(zip(names, (dataflow, *grid, *product, last), strict=True)))
    _write("scalesim-3.0.0.csv", rows)
    names = ("tokens", "inputs", "outputs", "rows", "columns")
    _write("zigzag-3.9.1.csv", [dict(zip(names, one, strict=True)) | zigzag(*one) for one in ZIGZAG_PRODUCTS])


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    with (DATA / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
