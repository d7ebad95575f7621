"""Scenario files: who is compared on what, under which assumptions, and which of them to vary."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.experiment import Pair, check_keys, check_workload
from speq.hardware.simulator.load import check, tables
from speq.hardware.simulator.schema import Name, Names, Quantity, Share, Source, Table, Values, positive


class Change(Table):
    """A value that a scenario or sweep sets."""

    key: str
    value: float | list[float]
    source: Source


class Knob(Table):
    """An assumption to vary: ``keys`` take each of ``values`` in turn, lowest to highest.

    ``moves`` names the accelerators whose ratio it should bring to the published one.
    """

    name: Name
    title: str
    unit: str
    keys: Names
    values: Annotated[Values, Field(min_length=2)]
    moves: list[str] = Field(default_factory=list)
    logarithmic: bool = False
    whole: bool = False


class Published(Table):
    """A published speed-up of the subject over an accelerator."""

    accelerator: str
    speedup: Annotated[Quantity, positive("1")]


class Scenario(Table):
    """A comparison. ``fitted`` says that some values were chosen to meet the published ratios."""

    name: Name
    title: str
    fitted: bool
    assumptions: list[str]
    subject: str
    reference: str
    accelerators: Names
    models: Names
    tasks: Names
    acceptance: Share
    draft_length: Annotated[Quantity, positive("token", most=64, whole=True)]
    early_stop: Share
    published: list[Published]
    changes: list[Change] = Field(default_factory=list)
    knobs: list[Knob] = Field(default_factory=list)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in (self.subject, self.reference, *(one.accelerator for one in self.published)):
            if name not in self.accelerators:
                raise ValueError(f"names {name!r}, which is not among its accelerators")
        return self

    @property
    def pairs(self) -> list[Pair]:
        return [Pair(model, task) for model in self.models for task in self.tasks]

    @property
    def drafts(self) -> Acceptance:
        return Acceptance(self.acceptance.value, int(self.draft_length.value), self.early_stop.value)

    @property
    def settings(self) -> dict[str, float | list[float]]:
        """What it changes, by key."""
        return {change.key: change.value for change in self.changes}


def load_scenario(name: str) -> Scenario:
    """The scenario called ``name``, with every key checked; one that ``extends`` another takes over what it lacks.

    Raises:
        SpeqError: the file is wrong.
    """
    origin, data = tables("scenarios", name)
    if isinstance(base := data.get("extends"), str):
        data = tables("scenarios", base)[1] | {key: value for key, value in data.items() if key != "extends"}
    scenario = check(Scenario, data, origin)
    for knob in scenario.knobs:
        origin = f"scenario {name}, knob {knob.name}"
        check_keys(knob.keys, scenario.accelerators, origin)
        for key in knob.keys:
            check_workload(key, knob.values, origin)
    check_keys(scenario.settings, scenario.accelerators, f"scenario {name}")
    for key, value in scenario.settings.items():
        check_workload(key, [value], f"scenario {name}")
    return scenario
