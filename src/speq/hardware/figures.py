"""Figures of the accelerator, drawn from the design itself: its hierarchy and its signals, as SVG.

The block diagram walks the elaborated design; the waveforms are a VCD file that a simulation wrote. Neither needs a
drawing library.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

FONT = 'font-family="monospace" font-size="11"'
LINE = 15
WIDE = 8  # pixels of a character, roughly


@dataclass
class Block:
    """A component: its name, and the components inside it."""

    name: str
    inside: list[Block] = field(default_factory=list)


def hierarchy(component: object, name: str, leaves: Sequence[str] = ()) -> Block:
    """The blocks of a component, from its elaborated fragment; those named in ``leaves`` are not looked into.

    Blocks of the same name but for their numbers are one block, with how many there are.
    """
    from amaranth.hdl import Fragment

    def walk(fragment: Fragment, name: str) -> Block:
        block = Block(name)
        if re.sub(r" x .*", "", name) in leaves:
            return block
        kinds: dict[str, Fragment] = {}
        counts: Counter[str] = Counter()
        for inner, inner_name, _ in fragment.subfragments:
            if inner_name is None:
                continue
            kind = re.sub(r"(_\d+)+$", "", str(inner_name))
            kinds.setdefault(kind, inner)
            counts[kind] += 1
        for kind, inner in kinds.items():
            block.inside.append(walk(inner, f"{kind} x {counts[kind]}" if counts[kind] > 1 else kind))
        return block

    return walk(Fragment.get(component, None), name)


def draw_blocks(block: Block) -> str:
    """Nested boxes: a component around the components that it is made of."""
    body, width, height = _box(block, 4, 4, 0)
    return _svg(width + 8, height + 8, body)


def _box(block: Block, x: int, y: int, level: int) -> tuple[list[str], int, int]:
    """The drawing of a block at a place, and its size."""
    label = (len(block.name) + 2) * WIDE
    children: list[str] = []
    width, height = label, 2 * LINE
    if block.inside:
        width, height, row_width, row_height = 0, LINE + 10, 0, 0
        for inner in block.inside:
            _, inner_width, inner_height = _box(inner, 0, 0, level + 1)
            if row_width and row_width + inner_width > 760:
                height, row_width, row_height = height + row_height + 8, 0, 0
            drawing, _, _ = _box(inner, x + 8 + row_width, y + height, level + 1)
            children += drawing
            row_width, row_height = row_width + inner_width + 8, max(row_height, inner_height)
            width = max(width, row_width + 8)
        width, height = max(width, label), height + row_height + 8
    shade = ("#ffffff", "#eef3f8", "#dbe7f2", "#c6d9ea", "#b0cae1")[min(level, 4)]
    box = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{shade}" stroke="#345"/>'
    text = f'<text x="{x + 7}" y="{y + LINE}" {FONT}>{escape(block.name)}</text>'
    return [box, text, *children], width, height


@dataclass(frozen=True)
class Trace:
    """A signal's values: (time, value) at every change."""

    bits: int
    changes: list[tuple[int, int]]

    def at(self, time: int) -> int:
        """The value at a time."""
        value = 0
        for when, new in self.changes:
            if when > time:
                break
            value = new
        return value


def read_vcd(path: Path) -> dict[str, Trace]:
    """Signals of a VCD file by their full names, scopes joined by dots; unknown bits read as 0."""
    scope: list[str] = []
    names: dict[str, list[str]] = {}
    bits: dict[str, int] = {}
    changes: dict[str, list[tuple[int, int]]] = {}
    time = 0
    for line in path.read_text().splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "$scope":
            scope.append(words[2])
        elif words[0] == "$upscope":
            scope.pop()
        elif words[0] == "$var":
            names.setdefault(words[3], []).append(".".join([*scope, words[4]]).replace("\\", ""))
            bits[words[3]], changes[words[3]] = int(words[2]), []
        elif line[0] == "#":
            time = int(line[1:])
        elif line[0] == "b" and words[1] in changes:
            changes[words[1]].append((time, int(re.sub("[xz]", "0", words[0][1:]), 2)))
        elif line[0] in "01xz" and line[1:] in changes:
            changes[line[1:]].append((time, int(line[0] == "1")))
    return {name: Trace(bits[key], changes[key]) for key, all_names in names.items() for name in all_names}


def draw_waves(traces: Mapping[str, Trace], rows: Mapping[str, str], clock: str, cycles: range) -> str:
    """A timing diagram of a stretch of cycles: ``rows`` are labels and full names, from top to bottom.

    A cycle ends with a rising edge of ``clock``; what a signal is just before it counts.
    """
    ends = [when - 1 for when, value in traces[clock].changes if value]
    left, step, height = 10 + WIDE * max(map(len, rows)), 30, 26
    body = []
    for index, cycle in enumerate(cycles):
        x = left + index * step
        body.append(f'<text x="{x + 8}" y="12" {FONT} fill="#789">{cycle}</text>')
        body.append(f'<line x1="{x}" y1="16" x2="{x}" y2="{20 + height * len(rows)}" stroke="#dde"/>')
    for row, (label, name) in enumerate(rows.items()):
        top, bottom = 22 + row * height, 22 + row * height + 16
        body.append(f'<text x="4" y="{bottom - 3}" {FONT}>{escape(label)}</text>')
        values = [traces[name].at(ends[cycle]) for cycle in cycles]
        if traces[name].bits == 1:
            points = "".join(
                f"{left + i * step},{top if v else bottom} {left + (i + 1) * step},{top if v else bottom} "
                for i, v in enumerate(values)
            )
            body.append(f'<polyline points="{points}" fill="none" stroke="#246" stroke-width="1.5"/>')
        else:
            body += _bus(values, left, step, top, bottom)
    return _svg(left + step * len(cycles) + 6, 26 + height * len(rows), body)


def _bus(values: Sequence[int], left: int, step: int, top: int, bottom: int) -> list[str]:
    body, start = [], 0
    for i in range(1, len(values) + 1):
        if i < len(values) and values[i] == values[start]:
            continue
        x, width = left + start * step, (i - start) * step
        text = f"{values[start]:x}"
        shown = text if len(text) * WIDE < width else text[: max(1, width // WIDE - 1)] + "~"
        body.append(
            f'<rect x="{x}" y="{top}" width="{width}" height="{bottom - top}" rx="4" fill="#eef3f8" stroke="#246"/>'
        )
        body.append(f'<text x="{x + 4}" y="{bottom - 4}" {FONT}>{shown}</text>')
        start = i
    return body


def _svg(width: int, height: int, body: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, ground, *body, "</svg>", ""])
