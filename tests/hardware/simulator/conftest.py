"""Accelerators and models that several tests use; without the hardware extra none of them is collected."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("pydantic") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def shape():
    """A function: the shape of a model by name."""
    from speq.hardware.simulator.load import load
    from speq.hardware.simulator.shapes import Shape

    return lambda name: load(Shape, "models", name)


@pytest.fixture(scope="session")
def accelerator():
    """A function: an accelerator by name, with changes."""
    from speq.hardware.simulator.load import load_accelerator

    return lambda name, **changes: load_accelerator(name, {key.replace("__", "."): v for key, v in changes.items()})
