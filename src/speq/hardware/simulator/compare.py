"""The comparison: speed and energy of every accelerator by pair, geometric means, the published ratios beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.experiment import Changes, Experiment, Pair, geometric_mean, workload_of
from speq.hardware.simulator.load import load, load_accelerator
from speq.hardware.simulator.scenario import Scenario
from speq.hardware.simulator.shapes import Shape, Task


@dataclass(frozen=True)
class Row:
    """Ratios of one pair to the reference, by accelerator; both are better the larger they are."""

    pair: Pair
    speedup: Mapping[str, float]
    energy: Mapping[str, float]


@dataclass(frozen=True)
class Ratio:
    """The subject's geometric-mean speed-up over an accelerator, and the published one."""

    accelerator: str
    ours: float
    published: float
    energy: float

    @property
    def deviation(self) -> float:
        """Ours over the published one, less 1."""
        return self.ours / self.published - 1


class Comparison:
    """A scenario's experiment and what follows from it under any further changes."""

    def __init__(self, scenario: Scenario, traces: Mapping[str, Sequence[Path]] | None = None) -> None:
        self.scenario, self.traces = scenario, dict(traces or {})
        self._experiment = Experiment(scenario.accelerators, scenario.pairs, scenario.drafts, self.traces)

    @property
    def drafts(self) -> Acceptance:
        """The acceptance model after what the scenario changes."""
        found = workload_of(load(Task, "tasks", self.scenario.tasks[0]), self.scenario.drafts, self.scenario.settings)
        assert isinstance(found.rounds, Acceptance)
        return found.rounds

    def rows(self, changes: Changes | None = None) -> list[Row]:
        """Every pair's ratios to the reference."""
        settings = self.scenario.settings | dict(changes or {})
        scores = {name: self._experiment.scores(name, settings) for name in self.scenario.accelerators}
        reference = scores[self.scenario.reference]
        return [
            Row(
                pair,
                {name: reference[at].seconds / scores[name][at].seconds for name in scores},
                {name: reference[at].joules / scores[name][at].joules for name in scores},
            )
            for at, pair in enumerate(self.scenario.pairs)
        ]

    def ratios(self, changes: Changes | None = None) -> list[Ratio]:
        """The subject against every accelerator with a published ratio."""
        return [
            Ratio(
                one.accelerator,
                self.speedup(one.accelerator, changes),
                one.speedup.value,
                self._mean(one.accelerator, changes, "joules"),
            )
            for one in self.scenario.published
        ]

    def speedup(self, accelerator: str, changes: Changes | None = None) -> float:
        """The subject's geometric-mean speed-up over ``accelerator``."""
        return self._mean(accelerator, changes, "seconds")

    def over_reference(self, accelerator: str, changes: Changes | None = None) -> float:
        """The geometric-mean speed-up of ``accelerator`` over the reference."""
        return self.speedup(self.scenario.reference, changes) / self.speedup(accelerator, changes)

    def _mean(self, accelerator: str, changes: Changes | None, quantity: str) -> float:
        settings = self.scenario.settings | dict(changes or {})
        theirs = self._experiment.scores(accelerator, settings)
        own = self._experiment.scores(self.scenario.subject, settings)
        return geometric_mean(getattr(a, quantity) / getattr(b, quantity) for a, b in zip(theirs, own, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Everything for a JSON report."""
        scenario, rows = self.scenario, self.rows()
        return {
            "scenario": scenario.model_dump(mode="json", exclude={"knobs"}),
            "traces": {task: [path.name for path in paths] for task, paths in self.traces.items()},
            "lossless": {name: load_accelerator(name).lossless for name in scenario.accelerators},
            "pairs": [
                {"model": row.pair.model, "task": row.pair.task, "speedup": row.speedup, "energy": row.energy}
                for row in rows
            ],
            "means": {
                name: {
                    "speedup": geometric_mean(row.speedup[name] for row in rows),
                    "energy": geometric_mean(row.energy[name] for row in rows),
                }
                for name in scenario.accelerators
            },
            "published": [
                {
                    "over": ratio.accelerator,
                    "ours": ratio.ours,
                    "published": ratio.published,
                    "deviation": ratio.deviation,
                    "energy": ratio.energy,
                }
                for ratio in self.ratios()
            ],
        }


def titles(scenario: Scenario) -> dict[str, str]:
    """What accelerators, models and tasks of a scenario are called in tables."""
    found = {name: load_accelerator(name).title for name in scenario.accelerators}
    found |= {name: load(Shape, "models", name).title for name in scenario.models}
    return found | {name: load(Task, "tasks", name).title for name in scenario.tasks}


def find_traces(directory: Path, tasks: Sequence[str]) -> dict[str, list[Path]]:
    """Traces of each task in a directory: files whose name begins with the task's name and a hyphen.

    Raises:
        SpeqError: a task has none.
    """
    found = {task: sorted(directory.glob(f"{task}-*.jsonl")) for task in tasks}
    missing = [task for task, paths in found.items() if not paths]
    if missing:
        raise SpeqError(f"{directory} has no trace of {missing[0]}: there must be a file {missing[0]}-*.jsonl")
    return found
