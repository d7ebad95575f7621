"""Several accelerators on several models and tasks, with values that can be changed by key.

A key is ``ACCELERATOR.path`` (``speq.array.rows``; a file of one's own goes by its name without .toml), ``all.path``
for every accelerator (``all.memory.peak_bandwidth``), or ``workload.NAME`` with one of acceptance, draft_length,
early_stop, prompt_tokens and new_tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import LONGEST_DRAFT, Acceptance
from speq.hardware.simulator.config import Accelerator
from speq.hardware.simulator.load import check, load, load_accelerator, whole
from speq.hardware.simulator.passes import Simulator
from speq.hardware.simulator.run import Run, Workload, replay, simulate
from speq.hardware.simulator.schema import Table
from speq.hardware.simulator.shapes import Shape, Task, Tokens
from speq.hardware.simulator.trace import read_trace

Changes = Mapping[str, Any]
DRAFT_KEYS = ("acceptance", "draft_length", "early_stop")


class _WorkloadTable(Table):
    """The values of the keys ``workload.NAME``."""

    acceptance: Annotated[float, Field(ge=0, le=1)]
    draft_length: Annotated[int, Field(ge=1, le=LONGEST_DRAFT)]
    early_stop: Annotated[float, Field(ge=0, le=1)]
    prompt_tokens: Tokens
    new_tokens: Tokens


WORKLOAD_KEYS = tuple(_WorkloadTable.model_fields)


@dataclass(frozen=True)
class Pair:
    """A model and a task."""

    model: str
    task: str


@dataclass(frozen=True)
class Score:
    """What a pair took on an accelerator: seconds and joules of the whole generation, all traces of it together."""

    seconds: float
    joules: float


@dataclass
class Experiment:
    """Runs pairs on accelerators and keeps what does not change between settings.

    Attributes:
        accelerators: names, see :func:`speq.hardware.simulator.load.find`.
        pairs: what to run. acceptance: the model of drafts for tasks without traces.
        traces: recorded generations, by the task's name; they replace a task's lengths and the acceptance model.
    """

    accelerators: Sequence[str]
    pairs: Sequence[Pair]
    acceptance: Acceptance
    traces: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    _known: dict[tuple[str, str], list[Score]] = field(default_factory=dict, repr=False)

    def scores(self, name: str, changes: Changes) -> list[Score]:
        """One score per pair for the accelerator ``name``.

        Raises:
            SpeqError: a key or value is wrong.
        """
        own = {
            key: value
            for key, value in changes.items()
            if key.startswith("workload.") or path_for(key, name) is not None
        }
        speculative = load_accelerator(name).passes.draft is not None
        if not speculative:  # drafts concern only accelerators that draft
            own = {key: value for key, value in own.items() if key.removeprefix("workload.") not in DRAFT_KEYS}
        key = (name, json.dumps(own, sort_keys=True))
        if key not in self._known:
            self._known[key] = [self._score(name, own, pair) for pair in self.pairs]
        return self._known[key]

    def _score(self, name: str, changes: Changes, pair: Pair) -> Score:
        simulator = Simulator(accelerator_with(name, changes), load(Shape, "models", pair.model))
        runs = [simulate(simulator, workload) for workload in self._workloads(pair, changes)]
        return Score(sum(run.seconds for run in runs), sum(run.joules for run in runs))

    def _workloads(self, pair: Pair, changes: Changes) -> list[Workload]:
        recorded = self.traces.get(pair.task)
        if recorded:
            return [replay(read_trace(path)) for path in recorded]
        return [workload_of(load(Task, "tasks", pair.task), self.acceptance, changes)]


def run_once(accelerator: str, model: str, workload: Workload, changes: Changes) -> tuple[Simulator, Run]:
    """One generation of one model on one accelerator, with the simulator for its layers."""
    simulator = Simulator(accelerator_with(accelerator, changes), load(Shape, "models", model))
    return simulator, simulate(simulator, workload)


def accelerator_with(name: str, changes: Changes) -> Accelerator:
    """The accelerator ``name`` after the changes that concern it."""
    paths = {key: path_for(key, name) for key in changes}
    return load_accelerator(name, {path: changes[key] for key, path in paths.items() if path is not None})


def path_for(key: str, name: str) -> str | None:
    """The part of a key after ``ACCELERATOR.`` or ``all.``; ``None`` if it does not concern ``name``."""
    for prefix in (f"{_prefix(name)}.", "all."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return None


def _prefix(name: str) -> str:
    return Path(name).name.removesuffix(".toml")


def workload_of(task: Task, acceptance: Acceptance, changes: Changes) -> Workload:
    """A task's generation, with the changes that begin with ``workload.``.

    Raises:
        SpeqError: a change is out of range.
    """
    named = {
        "acceptance": acceptance.rate,
        "draft_length": acceptance.draft_length,
        "early_stop": acceptance.early_stop,
    }
    values = named | {"prompt_tokens": task.prompt_tokens, "new_tokens": task.new_tokens}
    for key, value in changes.items():
        head, _, name = key.partition(".")
        if head == "workload":
            values[name] = whole(value) if isinstance(values.get(name), int) else value
    found = check(_WorkloadTable, values, "workload")
    drafts = Acceptance(found.acceptance, found.draft_length, found.early_stop)
    return Workload(found.prompt_tokens, found.new_tokens, drafts)


def check_keys(keys: Iterable[str], accelerators: Sequence[str], origin: str) -> None:
    """Find keys that no accelerator of an experiment knows.

    Raises:
        SpeqError: there is one.
    """
    for key in keys:
        head, _, rest = key.partition(".")
        if head == "workload":
            if rest not in WORKLOAD_KEYS:
                raise SpeqError(f"{origin}: unknown key {key}; allowed: workload.{', workload.'.join(WORKLOAD_KEYS)}")
        elif not any(path_for(key, name) for name in accelerators):
            names = ", ".join((*map(_prefix, accelerators), "all", "workload"))
            raise SpeqError(f"{origin}: unknown key {key}; it must begin with one of {names} and a dot")


def check_workload(key: str, values: Iterable[Any], origin: str) -> None:
    """Find values that ``key`` cannot take, if it is one of the workload.

    Raises:
        SpeqError: there is one.
    """
    if not key.startswith("workload."):
        return
    for value in values:
        possible = {"acceptance": 0.0, "draft_length": 1, "early_stop": 0.0, "prompt_tokens": 1, "new_tokens": 1}
        name = key.removeprefix("workload.")
        check(_WorkloadTable, possible | {name: whole(value) if isinstance(possible[name], int) else value}, origin)


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of positive numbers."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
