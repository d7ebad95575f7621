"""A library of gates that belongs to no technology: areas are transistors of static CMOS, delays and loads are counted.

It is what synthesis uses where no real library is installed, and an independent view where one is: the two libraries of
the Oklahoma State University differ by little more than a scale.
"""

from __future__ import annotations

from pathlib import Path

_GATES: tuple[tuple[str, str, int, str], ...] = (
    ("INV", "A", 2, "(!A)"),
    ("BUF", "A", 4, "A"),
    ("NAND2", "A B", 4, "(!(A B))"),
    ("NAND3", "A B C", 6, "(!((A B) C))"),
    ("NOR2", "A B", 4, "(!(A+B))"),
    ("NOR3", "A B C", 6, "(!((A+B)+C))"),
    ("AND2", "A B", 6, "(A B)"),
    ("OR2", "A B", 6, "(A+B)"),
    ("AOI21", "A B C", 6, "(!((A B)+C))"),
    ("AOI22", "A B C D", 8, "(!((A B)+(C D)))"),
    ("OAI21", "A B C", 6, "(!((A+B) C))"),
    ("OAI22", "A B C D", 8, "(!((A+B) (C+D)))"),
    ("XOR2", "A B", 10, "(A^B)"),
    ("XNOR2", "A B", 10, "(!(A^B))"),
    ("MUX2", "A B S", 10, "(!((S A) + (!S B)))"),
)
"""Name, inputs, transistors, function. A multiplexer inverts; exclusive OR has an inverter for one input."""

_FLIP_FLOP_TRANSISTORS = 24


def write_neutral_library(path: Path) -> None:
    """Write the library as a Liberty file: a load of 1 per input, a delay of 1 per gate, 1 V."""
    lines = ["library(neutral_gates) {", "  nom_voltage : 1;", '  time_unit : "1ns";', "  capacitive_load_unit (1,pf);"]
    for name, inputs, transistors, function in _GATES:
        lines += [f"  cell({name}) {{", f"    area : {transistors};"]
        lines += [f"    pin({pin}) {{ direction : input; capacitance : 1; }}" for pin in inputs.split()]
        lines += ["    pin(Y) {", "      direction : output;", f'      function : "{function}";']
        for pin in inputs.split():
            lines += [f'      timing() {{ related_pin : "{pin}"; timing_sense : non_unate;']
            lines += [f'        {edge}(scalar) {{ values("{delay}"); }}' for edge, delay in _SCALARS]
            lines += ["      }"]
        lines += ["    }", "  }"]
    lines += [
        "  cell(DFF) {",
        f"    area : {_FLIP_FLOP_TRANSISTORS};",
        '    ff(IQ, IQN) { next_state : "D"; clocked_on : "CLK"; }',
        "    pin(D) { direction : input; capacitance : 1; }",
        "    pin(CLK) { direction : input; capacitance : 1; clock : true; }",
        '    pin(Q) { direction : output; function : "IQ"; }',
        "  }",
        "}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_SCALARS = (("cell_rise", "1.0"), ("cell_fall", "1.0"), ("rise_transition", "0.0"), ("fall_transition", "0.0"))
