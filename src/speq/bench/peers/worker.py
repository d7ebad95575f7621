"""The process of one engine: JSON objects come in line by line, and one goes out for each.

    python -m speq.bench.peers.worker ENGINE PATH THREADS CONTEXT

The first line out says that the engine is loaded. Each line in is ``{"ids": [...], "tokens": n}``. What engines print
goes to stderr. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from speq.bench.peers import ENGINES, load_peer


def main(arguments: list[str]) -> int:
    """Serve requests until the input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # engines that print must not disturb the conversation
    engine, path, threads, context = arguments

    peer = _answer(out, lambda: load_peer(ENGINES[engine], Path(path), int(threads), int(context)), lambda peer: {})
    if peer is None:
        return 1
    for line in sys.stdin:
        request = json.loads(line)
        if _answer(out, lambda: peer.generate(request["ids"], request["tokens"]), asdict) is None:  # noqa: B023
            return 1
    return 0


def _answer(out: TextIO, work: Callable[[], Any], describe: Callable[[Any], dict[str, Any]]) -> Any:
    """Write what ``work`` gives, or the error in one line; an engine may raise anything."""
    result = None
    try:
        result = work()
        reply = describe(result)
    except Exception as error:
        reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    out.write(json.dumps(reply) + "\n")
    out.flush()
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
