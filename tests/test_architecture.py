"""The rooms of the house: nothing imports in a circle, and nothing imports upwards.

Every import counts, also those within functions and those that only a type checker follows: a reader follows them, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "limits", "drafts"),
    ("processors", "_native"),
    ("formats", "_devtools"),
    ("checkpoint", "graph", "terminal"),
    ("models", "backends"),
    ("runtime",),
    ("conversion", "training", "decoding"),
    ("serving",),
    ("bench",),
    ("cli",),
)
"""From the ground up. A room imports from the floors below it, and from itself."""

HARDWARE: tuple[tuple[str, ...], ...] = (
    ("array_parameters", "parameters", "e3m0", "yosys", "figures"),
    ("cycles", "golden"),
    ("testbench",),
    ("rtl",),
    ("synthesis",),
    ("verification",),
    ("simulator",),
)
"""The floors of the accelerator, which stands beside the house: it imports formats and what is below them."""

BENEATH_HARDWARE = ("formats", "errors")

OPERATORS_ARE_KNOWN_IN = ("speq.graph.ops", "speq.models.decoder", "speq.models.head", "speq.backends")
"""A new operator needs the operator, its functions in the backends and a model that has it, and nothing else."""


def modules(source: Path) -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in source.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: Path) -> dict[str, set[str]]:
    """What each module imports of the package: modules, not the packages that they lie in."""
    known = modules(source)
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one found; none if there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph[name]):
            if found := visit(other):
                return found
        path.pop()
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name):
            return found
    return []


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports that lead upwards or across, as ``importer -> imported``."""
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    inner = {room: height for height, rooms in enumerate(HARDWARE) for room in rooms}

    def allowed(name: str, other: str) -> bool:
        here, there = name.split("."), other.split(".")
        if len(here) == 1 or len(there) == 1:  # the package itself only hands on what others import
            return len(here) == 1 or here[1] in ("bench", "cli")
        if here[1] == there[1] == "hardware":
            return len(here) == 2 or here[2] == there[2] or inner[there[2]] < inner[here[2]]
        if here[1] == "hardware":
            return there[1] in BENEATH_HARDWARE
        if there[1] == "hardware":
            return here[1] == "cli"
        return here[1] == there[1] or floor[there[1]] < floor[here[1]]

    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if not allowed(name, other)
    ]


def test_nothing_imports_in_a_circle() -> None:
    assert circle(imports(SOURCE)) == []


def test_nothing_imports_upwards() -> None:
    assert upward(imports(SOURCE)) == []


def test_every_room_has_its_floor() -> None:
    rooms = {name.split(".")[1] for name in modules(SOURCE) if "." in name}
    assert rooms == {room for floor in FLOORS for room in floor} | {"hardware"}
    inner = {name.split(".")[2] for name in modules(SOURCE) if name.startswith("speq.hardware.")}
    assert inner == {room for floor in HARDWARE for room in floor}


def test_an_operator_is_known_only_to_itself_to_the_backends_and_to_the_model_that_has_it() -> None:
    users = [name for name, others in imports(SOURCE).items() if "speq.graph.ops" in others]
    named = {name: _names_from(modules(SOURCE)[name], "speq.graph.ops") - {"Operator", "StepProgram"} for name in users}
    assert not {name: found for name, found in named.items() if found and not name.startswith(OPERATORS_ARE_KNOWN_IN)}


def _names_from(path: Path, module: str) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("formats/spec.py", "from speq.models.config import model_config", "speq.formats.spec -> speq.models.config"),
        (
            "conversion/job.py",
            "def f():\n    import speq.decoding.verify",
            "speq.conversion.job -> speq.decoding.verify",
        ),
        ("runtime/kv.py", "import speq", "speq.runtime.kv -> speq"),
        ("decoding/stop.py", "from speq.hardware import cycles", "speq.decoding.stop -> speq.hardware.cycles"),
        (
            "hardware/rtl/core.py",
            "from speq.hardware.verification.formal import prove",
            "speq.hardware.rtl.core -> speq.hardware.verification.formal",
        ),
    ],
)
def test_an_import_that_leads_upwards_is_noticed(tmp_path: Path, file: str, line: str, fault: str) -> None:
    assert fault in upward(imports(_with_line(tmp_path, file, line)))


def test_a_circle_is_noticed_even_if_only_a_type_checker_follows_it(tmp_path: Path) -> None:
    line = "if TYPE_CHECKING:\n    from speq.checkpoint.sources.opening import open_source"
    found = circle(imports(_with_line(tmp_path, "checkpoint/sources/source.py", line)))
    assert {"speq.checkpoint.sources.source", "speq.checkpoint.sources.opening"} <= set(found)


def _with_line(directory: Path, file: str, line: str) -> Path:
    """A copy of the package's Python files, one of which has a line more."""
    for path in modules(SOURCE).values():
        copy = directory / path.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    changed = directory / "speq" / file
    changed.write_text(changed.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    return directory


def test_the_document_of_the_house_states_the_same_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    order = FLOORS[2:]
    assert "\n    " + " <- ".join(" | ".join(floor) for floor in order) + "\n" in text
