"""The models that ``speq`` knows by name: where to fetch them, their licences, and what their files must hash to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class WheelPart:
    """A piece of a model file, shipped as a member of a wheel on the package index."""

    requirement: str
    member: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WheelFile:
    """A model file made of one or more wheel parts, one after the other."""

    file: str
    bytes: int
    sha256: str
    parts: tuple[WheelPart, ...]


@dataclass(frozen=True)
class CatalogueEntry:
    """A model: its short name, title, licence, hub id, and a stand-in on the package index for when there is no hub."""

    name: str
    title: str
    license: str
    hub: str
    wheels: WheelFile


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """All entries by name."""
    entries = json.loads(Path(__file__).with_name("catalogue.json").read_text())
    return {
        entry["name"]: CatalogueEntry(
            **entry | {"wheels": WheelFile(**entry["wheels"] | {"parts": _parts(entry["wheels"]["parts"])})}
        )
        for entry in entries
    }


def find_entry(name: str) -> CatalogueEntry | None:
    """The entry with this name or hub id, in any case."""
    wanted = name.lower()
    return next((entry for entry in catalogue().values() if wanted in (entry.name, entry.hub.lower())), None)


def _parts(parts: list[dict[str, str | int]]) -> tuple[WheelPart, ...]:
    return tuple(
        WheelPart(str(part["requirement"]), str(part["member"]), int(part["bytes"]), str(part["sha256"]))
        for part in parts
    )
