"""Design-space sweeps: every combination of some values, in parallel, resumable, as Parquet.

Points are worked on in parts. A finished part is a Parquet file under ``parts``, renamed into place when complete; a
sweep that is started again skips those. ``sweep.json`` holds what the parts belong to, so that results of another
sweep are never mixed in. When all parts are there they become ``points.parquet``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.experiment import check_keys, check_workload, path_for, run_once, workload_of
from speq.hardware.simulator.files import make_directory, replacing, write_json
from speq.hardware.simulator.load import load, tables
from speq.hardware.simulator.scenario import Change
from speq.hardware.simulator.schema import Name, Names, Quantity, Share, Table, Values, positive
from speq.hardware.simulator.shapes import Task

VERSION = 2  # of the model and of the columns below; parts of another version are not continued
PART = 200  # points
MOST_POINTS = 5_000_000


class Axis(Table):
    """One dimension: ``keys`` take each of ``values`` in turn."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    unit: str
    keys: Names
    values: Values


class Sweep(Table):
    """What to vary around one accelerator, and the accelerator that speed and energy are relative to."""

    name: Name
    title: str
    subject: str
    reference: str
    model: str
    task: str
    acceptance: Share
    draft_length: Annotated[Quantity, positive("token", most=64, whole=True)]
    early_stop: Share
    changes: list[Change] = Field(default_factory=list)
    axes: Annotated[list[Axis], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [axis.name for axis in self.axes]
        if len(set(names)) < len(names) or set(names) & set(RESULTS):
            raise ValueError(f"has axes {', '.join(names)}; each needs a name of its own, none of {', '.join(RESULTS)}")
        for name in (self.subject, self.reference):
            taken: dict[str, str] = {}
            for axis in self.axes:
                for key in axis.keys:
                    path = key if key.startswith("workload.") else path_for(key, name)
                    if path is not None and taken.setdefault(path, axis.name) != axis.name:
                        raise ValueError(f"has axes {taken[path]} and {axis.name}, which both set {path} of {name}")
        return self

    @property
    def points(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)


RESULTS = ("speedup", "energy_ratio", "seconds", "joules", "tokens_per_second", "area_mm2", "dram_bytes", "bound")
"""Columns after those of the axes; both ratios are to the reference and better the larger they are."""


def load_sweep(name: str) -> Sweep:
    """The sweep called ``name``, with every key checked.

    Raises:
        SpeqError: the file is wrong, or it has more than 5,000,000 points.
    """
    sweep = load(Sweep, "sweeps", name)
    accelerators = (sweep.subject, sweep.reference)
    for axis in sweep.axes:
        origin = f"sweep {name}, axis {axis.name}"
        check_keys(axis.keys, accelerators, origin)
        for key in axis.keys:
            check_workload(key, axis.values, origin)
    check_keys((change.key for change in sweep.changes), accelerators, f"sweep {name}")
    for change in sweep.changes:
        check_workload(change.key, [change.value], f"sweep {name}")
    if sweep.points > MOST_POINTS:
        raise SpeqError(f"sweep {name} has {sweep.points:,} points, more than {MOST_POINTS:,}: give axes fewer values")
    return sweep


def parts_of(sweep: Sweep) -> int:
    """How many parts the points make."""
    return -(-sweep.points // PART)


def compute_part(sweep: Sweep, part: int) -> list[dict[str, Any]]:
    """The rows of one part: values of the axes and the results.

    Raises:
        SpeqError: a combination is impossible; the message names it.
    """
    task = load(Task, "tasks", sweep.task)
    drafts = Acceptance(sweep.acceptance.value, int(sweep.draft_length.value), sweep.early_stop.value)
    fixed = {change.key: change.value for change in sweep.changes}
    known: dict[Any, tuple[float, float]] = {}
    rows = []
    for values in itertools.islice(_points(sweep), part * PART, (part + 1) * PART):
        changes = fixed | {key: value for axis, value in zip(sweep.axes, values, strict=True) for key in axis.keys}
        try:
            workload = workload_of(task, drafts, changes)
            relevant = {k: v for k, v in changes.items() if path_for(k, sweep.reference)}
            key = (json.dumps(relevant), workload.prompt_tokens, workload.new_tokens)
            if key not in known:
                run = run_once(sweep.reference, sweep.model, workload, changes)[1]
                known[key] = (run.seconds, run.joules)
            simulator, run = run_once(sweep.subject, sweep.model, workload, changes)
        except SpeqError as error:
            named = ", ".join(f"{axis.name} = {value:g}" for axis, value in zip(sweep.axes, values, strict=True))
            raise SpeqError(f"sweep {sweep.name} at {named}: {error}") from None
        seconds, joules = known[key]
        results = (
            seconds / run.seconds,
            joules / run.joules,
            run.seconds,
            run.joules,
            run.tokens_per_second,
            simulator.machine.area,
            run.total.dram_bytes,
            run.total.bound,
        )
        axes = {axis.name: value for axis, value in zip(sweep.axes, values, strict=True)}
        rows.append(axes | dict(zip(RESULTS, results, strict=True)))
    return rows


def write_part(sweep: Sweep, part: int, path: Path) -> None:
    """Compute a part and write it, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(compute_part(sweep, part))
    with replacing(path) as partial:
        pq.write_table(table, partial)


def prepare(sweep: Sweep, directory: Path) -> list[tuple[int, Path]]:
    """Make the directory ready and list the parts that are still missing.

    Raises:
        SpeqError: it holds results of another sweep.
    """
    make_directory(directory / "parts")
    record, fingerprint = directory / "sweep.json", _fingerprint(sweep)
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        if found != fingerprint:
            raise SpeqError(f"{directory} holds another sweep or an older one: choose a new directory with --out")
    write_json(record, {"fingerprint": fingerprint, "version": VERSION, "sweep": sweep.model_dump(mode="json")})
    paths = ((part, directory / "parts" / f"part-{part:05d}.parquet") for part in range(parts_of(sweep)))
    return [(part, path) for part, path in paths if not path.exists()]


def _read(path: Path) -> Any:
    """A Parquet file as a table. Without a pool, which would wait for ever for threads that the system refuses.

    Raises:
        SpeqError: not even the one thread that is needed is started.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)
    except pa.ArrowInvalid:
        raise
    except pa.ArrowException as error:
        raise SpeqError(f"cannot read {path} ({error}): raise the system's limit of threads") from None


def join(sweep: Sweep, directory: Path) -> Path:
    """Write all parts, in order, as ``points.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [directory / "parts" / f"part-{part:05d}.parquet" for part in range(parts_of(sweep))]
    try:
        table = pa.concat_tables([_read(path) for path in parts])
    except (pa.ArrowInvalid, OSError) as error:
        raise SpeqError(f"a part in {directory / 'parts'} is damaged ({error}): delete it and run again") from None
    path = directory / "points.parquet"
    with replacing(path) as partial:
        pq.write_table(table, partial)
    return path


def _points(sweep: Sweep) -> Iterator[tuple[float, ...]]:
    return itertools.product(*(axis.values for axis in sweep.axes))


def _fingerprint(sweep: Sweep) -> str:
    """Changes when the sweep or a file that it names does."""
    files = [("accelerators", sweep.subject), ("accelerators", sweep.reference)]
    named = [tables(folder, name)[1] for folder, name in [*files, ("models", sweep.model), ("tasks", sweep.task)]]
    memories = [tables("memories", one["memory"])[1] for one in named[:2] if isinstance(one["memory"], str)]
    content = json.dumps([VERSION, sweep.model_dump(mode="json"), named, memories], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def finish(sweep: Sweep, directory: Path) -> tuple[dict[str, Any], list[Path]]:
    """Join the parts and draw the Pareto plots; returns a summary and the files."""

    from speq.hardware.simulator import plots

    path = join(sweep, directory)
    columns = _read(path).to_pydict()
    made = [path, *plots.pareto(columns, directory)]
    fronts = {
        name: [
            {column: values[i] for column, values in columns.items()}
            for i in plots.pareto_front(columns[name], columns["speedup"], larger=larger)
        ]
        for name, larger in (("energy_ratio", True), ("area_mm2", False))
    }
    return {"sweep": sweep.model_dump(mode="json"), "points": sweep.points, "pareto": fronts}, made
