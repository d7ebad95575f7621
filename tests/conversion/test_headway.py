"""A conversion that is killed again and again: every run gets further, and the result is that of one run.

Work is counted where it is done: parts of files that are digested, rows that are encoded, samples that are run,
moments and feedback. After a fixed amount of it the process is gone, as with SIGKILL: nothing is tidied up.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from speq.checkpoint import digests as digests_module
from speq.conversion import calibrate as recode_module
from speq.conversion import kept as kept_module
from speq.conversion import observe as observe_module
from speq.conversion import split as split_module
from speq.conversion.calibrate import Calibration
from speq.conversion.convert import convert

_KILLED = 77


def count_work(limit: int, log: Path) -> None:
    """Log every unit of work, and end the process as suddenly as a signal would before the unit ``limit``."""
    kept_module._SECONDS = 0.0
    digests_module._SETTLED_NS = -(10**18)
    for module in (split_module, recode_module):
        module._CHUNK_WEIGHTS = 1 << 12
    done = 0

    def counted(kind: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == limit:
                os._exit(_KILLED)
            done += 1
            result = function(*args, **kwargs)
            with log.open("a") as file:
                file.write(json.dumps(kind) + "\n")
            return result

        return call

    digests_module._digest_of = counted("digest", digests_module._digest_of)
    split_module.encode = counted("split", split_module.encode)
    recode_module.encode = counted("codes", recode_module.encode)
    recode_module.feedback_of = counted("feedback", recode_module.feedback_of)
    observe_module._moments = counted("moments", observe_module._moments)
    observe_module._Run._sample = counted("sample", observe_module._Run._sample)


def run(source: Path, dst: Path, limit: int, log: Path, options: dict[str, Any]) -> None:
    count_work(limit, log)
    calibration = None if options.get("format") == "e3m0" else Calibration()
    convert(source, dst, calibration=calibration, threads=1, **options)


def in_a_process(*args: Any) -> int:
    process = multiprocessing.get_context("fork").Process(target=run, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("options", [{}, {"format": "e3m0"}], ids=["nested", "e3m0"])
@pytest.mark.parametrize("limit", [13, 40])
def test_every_run_gets_further(tiny_checkpoint, tmp_path, monkeypatch, limit, options):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests_module, "_PART_BYTES", 1 << 14)
    assert in_a_process(tiny_checkpoint, tmp_path / "whole", 10**9, tmp_path / "whole.log", options) == 0
    needed = Counter((tmp_path / "whole.log").read_text().split())
    shutil.rmtree(tmp_path / "cache")
    runs = 0
    while in_a_process(tiny_checkpoint, tmp_path / "out", limit, tmp_path / "log", options) == _KILLED:
        runs += 1
        assert not (tmp_path / "out").exists()
        # Each run repeats what it was doing when it was killed, at most: the work that is left falls every time.
        assert runs <= -(-needed.total() // (limit - 3))
    done = Counter((tmp_path / "log").read_text().split())
    assert runs >= needed.total() // limit - 1
    for kind, count in needed.items():
        assert count <= done[kind] <= count + runs, kind
    convert(tiny_checkpoint, tmp_path / "at once", calibration=Calibration(), threads=1, **options)  # in large pieces
    for file in (tmp_path / "at once").iterdir():
        assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes(), file.name
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_is_killed_at_once_leaves_what_was_done(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests_module, "_PART_BYTES", 1 << 14)
    log, dst = tmp_path / "log", tmp_path / "out"
    assert in_a_process(tiny_checkpoint, dst, 60, log, {}) == _KILLED
    before = log.read_text()
    for _ in range(3):
        assert in_a_process(tiny_checkpoint, dst, 0, log, {}) == _KILLED
    assert log.read_text() == before
    assert in_a_process(tiny_checkpoint, dst, 10**9, log, {}) == 0
    assert Counter(log.read_text().split())['"sample"'] > 0
