"""Finding and reading configuration files: by the name of one that comes with speq, or by path.

Every mistake in a file is one line that names the file, the key and what is allowed there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from speq.errors import SpeqError
from speq.hardware.simulator.config import Accelerator, Memory
from speq.hardware.simulator.schema import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILTIN = Path(__file__).parents[1]
Kind = TypeVar("Kind", bound=Table)
_LONGEST = 60  # characters of a value in a message


def available(folder: str) -> list[str]:
    """Names of the files of one kind that come with speq: accelerators, memories, models, tasks, scenarios, sweeps."""
    return sorted(path.stem for path in (BUILTIN / folder).glob("*.toml"))


def find(folder: str, name: str) -> Path:
    """The file called ``name``: a path, or the name of one that comes with speq.

    Raises:
        SpeqError: there is neither.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise SpeqError(f"there is no file {name}")
        return path
    path = BUILTIN / folder / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(available(folder))
        raise SpeqError(f"there is no {name!r} in {folder}: use a .toml file or one of {names}")
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        SpeqError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # no TOML, no UTF-8, endless digits or brackets
        raise SpeqError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SpeqError(f"cannot read {path}: {error.strerror}") from None


def check(kind: type[Kind], data: Mapping[str, Any], origin: str) -> Kind:
    """``data`` as a table of ``kind``; ``origin`` is what error messages call it.

    Raises:
        SpeqError: a key is unknown or missing, or a value is not allowed.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)  # a misspelt key comes first: it also makes another one missing
        first = min(mistakes, key=lambda one: one["type"] != "extra_forbidden")
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise SpeqError(f"{origin}: {_explain(kind, first)}{more}") from None


@cache
def tables(folder: str, name: str) -> tuple[str, dict[str, Any]]:
    """What error messages call a file, and its tables; read once."""
    path = find(folder, name)
    return str(path) if path.parent.parent != BUILTIN else f"{folder}/{path.name}", read_toml(path)


def load(kind: type[Kind], folder: str, name: str) -> Kind:
    """Read and check the file called ``name``; see :func:`find`."""
    origin, data = tables(folder, name)
    return check(kind, data, origin)


def load_accelerator(name: str, changes: Mapping[str, Any] | None = None) -> Accelerator:
    """An accelerator with its memory, after ``changes``: new values by dotted key, such as ``array.rows``.

    Raises:
        SpeqError: the file or a change is wrong.
    """
    origin, data = tables("accelerators", name)
    if isinstance(data.get("memory"), str):
        source, memory = tables("memories", data["memory"])
        check(Memory, memory, source)
        data = data | {"memory": memory}
    for key, value in (changes or {}).items():
        data = changed(data, key.split("."), value, f"{origin}: {key}")
    return check(Accelerator, data, origin)


def changed(data: dict[str, Any], path: list[str], value: Any, culprit: str) -> dict[str, Any]:
    """A copy of nested tables with one value replaced; a quantity keeps its unit and says that it was changed.

    Raises:
        SpeqError: there is no such key.
    """
    key = path[0]
    if key not in data:
        raise SpeqError(f"{culprit}: there is no key {key}; there is: {', '.join(sorted(data))}")
    old = data[key]
    if len(path) > 1:
        if not isinstance(old, dict):
            raise SpeqError(f"{culprit}: {key} is no table")
        return data | {key: changed(old, path[1:], value, culprit)}
    if isinstance(old, dict):
        if "value" not in old or isinstance(value, (dict, list)):
            raise SpeqError(f"{culprit}: {key} is a table: name one of its keys {', '.join(sorted(old))}")
        return data | {key: old | {"value": value, "source": f"changed from {old['value']} for this run"}}
    return data | {key: whole(value) if isinstance(old, int) and not isinstance(old, bool) else value}


def whole(value: Any) -> Any:
    """A value for a key that takes integers: 8.0 is 8, and anything else stays what it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _explain(kind: type[BaseModel], error: Any) -> str:
    """One mistake as ``key: what is wrong; what is allowed``."""
    where = [str(part) for part in error["loc"]]
    key = ".".join(where) or "the file"
    problem = error["type"]
    if problem == "extra_forbidden":
        allowed = sorted(_table_at(kind, where[:-1]).model_fields)
        return f"unknown key {key}; allowed there: {', '.join(allowed)}"
    if problem == "missing":
        return f"{key} is missing"
    if problem == "value_error":
        return f"{key} {error['ctx']['error']}"
    if problem == "literal_error":
        return f"{key} is {_shown(error['input'])}; it must be {error['ctx']['expected']}"
    given = error["input"]
    shown = f" is {_shown(given)}" if isinstance(given, (str, int, float, bool)) else ""
    return f"{key}{shown}; {error['msg'].replace('Input should', 'it should')}"


def _shown(value: Any) -> str:
    """A value as a message shows it, not longer than a line."""
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:  # thousands of digits cannot even be written
        return f"an integer of more than {_LONGEST} digits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _table_at(kind: type[BaseModel], where: list[str]) -> type[BaseModel]:
    """The table class that a key path leads to, through optional, annotated and dictionary types."""
    for part in where:
        field = kind.model_fields.get(part)
        found = _tables_in(field.annotation) if field else []
        if found:
            kind = found[0]
    return kind


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in _tables_in(part)]
