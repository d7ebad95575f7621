"""The other end of a worker: starts it, talks to it, and turns every way it can fail into one line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from speq.bench.memory import memory_of
from speq.bench.peers import EngineSpec, Generation
from speq.errors import SpeqError

LOAD_TIMEOUT, GENERATE_TIMEOUT = 900.0, 600.0  # seconds


class Worker:
    """An engine in a process of its own.

    Raises:
        SpeqError: the engine did not load; later methods: it failed, ended or takes too long.
    """

    def __init__(self, spec: EngineSpec, path: Path, threads: int, context: int) -> None:
        self.spec = spec
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speq.bench.peers.worker", spec.name, str(path), str(threads), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # an interrupt is for the benchmark, which then ends its workers
        )
        try:
            self._reply(LOAD_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def generate(self, ids: list[int], tokens: int) -> Generation:
        """See :meth:`speq.bench.peers.Peer.generate`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ids": ids, "tokens": tokens}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        reply = Generation(**self._reply(GENERATE_TIMEOUT))
        if len(reply.token_ids) != tokens:
            raise SpeqError(f"{self.spec.name} gave {len(reply.token_ids)} tokens instead of {tokens}")
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was still to be written has no reader any more
                continue

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the process has used so far; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident(self) -> int | None:
        """Bytes of resident memory, mapped files included."""
        return memory_of(self._process.pid)["resident"]

    def _reply(self, timeout: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout)[0]:
            raise SpeqError(f"{self.spec.name} did not answer within {timeout:.0f} s")
        line = stdout.readline()
        if not line:
            raise self._ended()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise SpeqError(f"{self.spec.name} failed: {reply['error']}")
        return reply

    def _ended(self) -> SpeqError:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return SpeqError(f"{self.spec.name} ended with code {code}" + (f": {lines[-1].strip()}" if lines else ""))
