"""Start-up and memory of a fresh process: seconds to the model and to the first token, resident memory at the end.

The process that is measured is ``python -m speq.bench.memory MODEL THREADS TOKENS STARTED``; it prints a JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from speq.errors import SpeqError

NEW_TOKENS = 64


@dataclass(frozen=True)
class MemoryRow:
    """One process that loaded a converted model and generated some tokens from a short prompt.

    Attributes:
        start_seconds: from the start of the program to the first token.
        load_seconds, first_token_seconds: of these for loading, and from there to the first token.
        resident, peak: bytes of memory at the end and at most; None where the system does not tell.
        anonymous: those of the resident bytes that are not mapped from files.
        file: bytes of weights on disk, which are mapped and therefore count as resident.
        cache: bytes of keys and values of the tokens that were generated.
        tokens: prompt and generated tokens.
    """

    start_seconds: float
    load_seconds: float
    first_token_seconds: float
    resident: int | None
    peak: int | None
    anonymous: int | None
    file: int
    cache: int
    tokens: int

    @property
    def ratio(self) -> float | None:
        """Resident memory over weights on disk and cache."""
        return self.resident / (self.file + self.cache) if self.resident else None


def measure_memory(path: Path, *, threads: int | None = None, new_tokens: int = NEW_TOKENS) -> MemoryRow:
    """Start a process that loads the converted model at ``path``, which is in the page cache by then, and generates.

    Raises:
        SpeqError: the process failed.
    """
    _run(path, threads, 1)  # one that is not counted reads the weights, maybe from a disk
    return _run(path, threads, new_tokens)


def _run(path: Path, threads: int | None, new_tokens: int) -> MemoryRow:
    arguments = [sys.executable, "-m", "speq.bench.memory", str(path), str(threads or 0), str(new_tokens)]
    arguments.append(str(time.time()))
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SpeqError(f"the process that measures memory failed: {last}")
    return MemoryRow(**json.loads(done.stdout.splitlines()[-1]))


def memory_of(pid: int | str = "self") -> dict[str, int | None]:
    """``resident``, ``peak`` and ``anonymous`` memory of a process in bytes, as Linux tells; None elsewhere."""
    names = {"VmRSS": "resident", "VmHWM": "peak", "RssAnon": "anonymous"}
    found: dict[str, int | None] = dict.fromkeys(names.values())
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        key, _, value = line.partition(":")
        if key in names:
            found[names[key]] = int(value.split()[0]) * 1024
    return found


def _measured(path: Path, threads: int | None, new_tokens: int, started: float) -> MemoryRow:
    import speq

    imported = time.perf_counter()
    model = speq.load(path, threads=threads)
    loaded = time.perf_counter()
    prompt = list(range(min(8, model.engine.vocab_size)))
    stream = model.stream(prompt, max_new_tokens=new_tokens, draft="self", ignore_ends=True)
    next(stream)
    first, since_start = time.perf_counter(), time.time() - started
    for _ in stream:
        pass
    from speq.checkpoint.store import WEIGHTS
    from speq.models.config import model_config

    config = model_config(json.loads((path / "config.json").read_text(encoding="utf-8")))
    tokens = stream.result.stats.prompt_tokens + stream.result.stats.new_tokens
    return MemoryRow(
        start_seconds=since_start,
        load_seconds=loaded - imported,
        first_token_seconds=first - loaded,
        **memory_of(),
        file=(path / WEIGHTS).stat().st_size,
        cache=4 * config.layers * config.kv_heads * config.head_dim * tokens,
        tokens=tokens,
    )


if __name__ == "__main__":
    model_path, thread_count, token_count, start = sys.argv[1:]
    print(json.dumps(asdict(_measured(Path(model_path), int(thread_count) or None, int(token_count), float(start)))))
