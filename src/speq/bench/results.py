"""Figures that are kept: one CSV schema for everything that is measured, with one writer and one reader.

A row is one figure: when it was taken, by which commit of speq, on which machine and model, what was measured, of
which kind and over how many tokens, and the value in its unit. ``what`` is ``TABLE.FIELD``, as in ``passes.seconds``;
``kind`` names the row of the table (``draft``, or ``q, k, v / draft`` where several names tell rows apart), and may be
empty, as ``tokens`` may. :data:`SHAPES` says for each table which of its fields are names, which one counts tokens, and
the units of the others. So a table goes into figures and comes back as rows.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from speq.bench.machine import this_machine
from speq.checkpoint.storage import replace_file, writing_to
from speq.errors import SpeqError

Value: TypeAlias = int | float


@dataclass(frozen=True)
class Figure:
    """One value and where it comes from; the fields are the columns of a file."""

    date: str
    commit: str
    machine: str
    model: str
    what: str
    kind: str
    tokens: int | None
    value: Value
    unit: str

    @property
    def table(self) -> str:
        return self.what.partition(".")[0]


COLUMNS = tuple(each.name for each in fields(Figure))


@dataclass(frozen=True)
class Shape:
    """How the rows of a table become figures.

    Attributes:
        names: the fields that tell rows apart, in the order in which ``kind`` has them.
        tokens: the field that counts tokens, if there is one.
        units: of every field that is a figure; other fields, such as remarks, are not kept.
    """

    names: tuple[str, ...] = ()
    tokens: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where figures come from."""

    date: str
    commit: str
    machine: str
    model: str


def _units(**names: str) -> dict[str, str]:
    """Units by field, from the names of fields by unit."""
    units = {"rate": "tokens/s", "bandwidth": "B/s", "flops": "GFLOP/s"}
    return {name: units.get(unit, unit) for unit, given in names.items() for name in given.split()}


_SPREAD = "seconds low high"
_READ = {"bytes": "B", "bandwidth": "B/s", "rate": "B/s"}

SHAPES: Mapping[str, Shape] = {
    "kernels": Shape(
        ("operator", "kind"),
        "tokens",
        {
            **_units(s=f"{_SPREAD} half_seconds", ratio="bandwidth_share half_ratio", flops="gflops"),
            **_READ,
            "peak": "FLOP/s",
            "operations": "FLOP",
        },
    ),
    "others": Shape(("operator",), None, _units(s=_SPREAD)),
    "attention": Shape((), "context", {**_units(s=_SPREAD, ratio="bandwidth_share"), **_READ}),
    "passes": Shape(("kind",), "tokens", _units(s=_SPREAD, ratio="plain_ratio")),
    "sequences": Shape(("sequences",), None, {**_units(rate="rate low high"), "ratio": "ratio"}),
    "prompts": Shape(
        ("prompt",),
        "new_tokens",
        _units(
            rate="plain_rate speculative_rate",
            ratio="speed_up acceptance_rate",
            tokens="tokens_per_round",
            bool="same",
        ),
    ),
    "end_to_end": Shape(
        (),
        None,
        _units(
            rate="plain_rate speculative_rate",
            ratio="speed_up bandwidth_share",
            bandwidth="bandwidth",
            B="bytes_per_token",
            count="differing",
        ),
    ),
    "spec": Shape(
        ("draft", "category"),
        None,
        _units(
            count="prompts tokens differing",
            rate="plain_rate rate",
            ratio="speed_up interval_low interval_high least acceptance_rate",
            tokens="tokens_per_round",
        ),
    ),
    "spec_prompts": Shape(
        ("draft", "category", "prompt"),
        "new_tokens",
        _units(rate="plain_rate rate", ratio="speed_up acceptance_rate", tokens="tokens_per_round", count="differing"),
    ),
    "spec_stages": Shape(
        ("draft", "category", "level"),
        None,
        _units(count="passes proposed accepted", ratio="acceptance_rate", tokens="tokens_per_pass"),
    ),
    "spec_positions": Shape(
        ("draft", "category", "level"), "position", _units(count="tested accepted", ratio="acceptance_rate")
    ),
    "spec_time": Shape(("draft", "category", "part"), None, _units(s="seconds", ratio="share")),
    "replay": Shape(
        ("policy", "category"),
        None,
        _units(
            count="texts",
            tokens="tokens tokens_per_round",
            rate="rate measured_rate",
            ratio="speed_up clairvoyant_ratio fixed_ratio",
        ),
    ),
    "prefill": Shape(
        (),
        "tokens",
        {
            **_units(s=_SPREAD, rate="rate", flops="gflops numpy_gflops torch_gflops"),
            **_units(ratio="numpy_share torch_share"),
            "operations": "FLOP",
        },
    ),
    "overhead": Shape(("kind",), None, _units(s="seconds products overhead", ratio="share")),
    "memory": Shape(
        (),
        "tokens",
        _units(
            s="start_seconds load_seconds first_token_seconds",
            B="resident peak anonymous file cache",
            ratio="ratio",
        ),
    ),
    "engines": Shape(
        ("engine",),
        None,
        _units(
            rate="rate low high", ratio="plain_ratio", s="first_seconds", count="prompts same_answers", B="resident"
        ),
    ),
    "runs": Shape(("engine", "prompt"), "tokens", _units(rate="rate", s="first_seconds", tokens="agreement")),
    "agreement": Shape(("table", "group_size", "round"), "tokens", _units(ratio="agreement standard_error overlap")),
    "exactness": Shape(("draft",), "tokens", _units(count="prompts differing drafted accepted")),
    "heads": Shape(("prompts_file",), None, _units(count="prompts chains", ratio="agreement")),
    "head_chains": Shape(("prompts_file", "level"), "place", _units(ratio="right")),
    "head_passes": Shape(("prompts_file",), "rows", _units(tokens="gained")),
    "training": Shape(("step",), None, _units(s="seconds")),
    "training_chains": Shape(("step", "after"), "place", _units(ratio="right")),
}

_BETWEEN = " / "


def origin_here(model: str, threads: int | None = None, isa: str | None = None) -> Origin:
    """The origin of figures that are taken now, by this code, on this machine."""
    machine = this_machine(threads)
    name = machine_name(machine.processor, machine.threads, isa or machine.isa)
    return Origin(datetime.now(timezone.utc).isoformat(timespec="seconds"), commit(), name, model)


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """All figures of a report (as a dict, see :mod:`speq.bench.report`)."""
    machine, made_by = report["machine"], report.get("versions", {})
    origin = Origin(
        report["date"],
        made_by.get("commit", made_by.get("speq", "")),
        machine_name(machine["processor"], machine["threads"], machine.get("isa")),
        report["model"]["name"],
    )
    return [
        each
        for table, rows in report["results"].items()
        if table in SHAPES
        for each in table_figures(origin, table, rows)
    ]


def table_figures(origin: Origin, table: str, rows: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """The figures of a table; values that are None were not measured and are left out. Names that would read as
    several ones, such as a prompt's ``a / b``, lose the spaces.
    """
    shape = SHAPES[table]
    return [
        Figure(
            **vars(origin),
            what=f"{table}.{name}",
            kind=_BETWEEN.join(str(row[key]).replace(_BETWEEN, _BETWEEN.strip()) for key in shape.names),
            tokens=row[shape.tokens] if shape.tokens else None,
            value=int(row[name]) if isinstance(row[name], bool) else row[name],
            unit=unit,
        )
        for row in rows
        for name, unit in shape.units.items()
        if row.get(name) is not None
    ]


def rows_of(found: Iterable[Figure], table: str) -> list[dict[str, Any]]:
    """The rows of a table that figures came from, in their order; names are text."""
    shape = SHAPES[table]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in found:
        if each.table != table:
            continue
        key = (each.date, each.commit, each.machine, each.model, each.kind, each.tokens)
        if key not in rows:
            names = zip(shape.names, each.kind.split(_BETWEEN), strict=True) if shape.names else ()
            rows[key] = dict(names)
            if shape.tokens:
                rows[key][shape.tokens] = each.tokens
        rows[key][each.what.partition(".")[2]] = bool(each.value) if each.unit == "bool" else each.value
    return list(rows.values())


def machine_name(processor: str, threads: int, isa: str | None = None) -> str:
    """The ``machine`` of a figure."""
    return ", ".join(part for part in (processor, f"{threads} threads", isa) if part)


@cache
def commit() -> str:
    """The commit of the checkout that this code runs from, ``-dirty`` if the code differs from it; speq's version
    where there is no checkout.
    """
    package = Path(__file__).parents[1]
    try:
        _git(package, "ls-files", "--error-unmatch", __file__)
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(package, "rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return version("speq")


def _git(directory: Path, *arguments: str) -> str:
    call = ("git", "-C", str(directory), *arguments)
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def write_csv(found: Sequence[Figure], path: Path) -> None:
    """Write figures; a file that is there is replaced as a whole.

    Raises:
        SpeqError: there are none, or the file cannot be written.
    """
    if not found:
        raise SpeqError(f"nothing was measured for {path}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if value is None else value for value in astuple(each)] for each in found)
    with writing_to(path):
        replace_file(path, text.getvalue().encode())


def read_csv(path: Path) -> list[Figure]:
    """The figures of a file.

    Raises:
        SpeqError: there is no such file, it is of another kind, or a row of it is no figure.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpeqError(f"cannot read {path}: {error}") from None
    if tuple(header) != COLUMNS:
        raise SpeqError(f"{path} holds no figures: give a file that was written with --csv")
    return [_figure(path, number, line) for number, line in enumerate(lines, 2)]


def _figure(path: Path, number: int, line: Sequence[str]) -> Figure:
    """The figure of a line of a file."""
    where = f"{path}, line {number}"
    if len(line) != len(COLUMNS):
        raise SpeqError(f"{where}: {len(line)} fields instead of {len(COLUMNS)}: write the file again")
    row = dict(zip(COLUMNS, line, strict=True))
    table, _, name = row["what"].partition(".")
    shape = SHAPES.get(table)
    if shape is None or name not in shape.units:
        raise SpeqError(f"{where}: this version knows no figure {row['what']!r}: write the file again")
    if row["unit"] != shape.units[name]:
        raise SpeqError(f"{where}: {row['what']} is in {shape.units[name]}, not {row['unit']!r}: write the file again")
    if shape.names and len(row["kind"].split(_BETWEEN)) != len(shape.names):
        raise SpeqError(f"{where}: the kind {row['kind']!r} has not {len(shape.names)} parts: write the file again")
    value, tokens = _parsed(row.pop("value")), _parsed(row.pop("tokens"))
    if isinstance(value, str):
        raise SpeqError(f"{where}: the value {value!r} is no number: write the file again")
    if isinstance(tokens, float) or (tokens != "" if isinstance(tokens, str) else not shape.tokens):
        raise SpeqError(f"{where}: {tokens!r} is no number of tokens for {row['what']}: write the file again")
    return Figure(**row, tokens=None if isinstance(tokens, str) else tokens, value=value)


def _parsed(text: str) -> Value | str:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
