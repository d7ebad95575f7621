"""llama.cpp through llama-cpp-python."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

from speq.bench.peers import Generation


class LlamaCppPeer:
    """A model of llama-cpp-python on the CPU."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: list[int], tokens: int) -> Generation:
        started = time.perf_counter()
        new, times = [], []
        for token in islice(self._model.generate(ids, temp=0.0), tokens):
            new.append(int(token))
            times.append(time.perf_counter())
        return Generation(new, times[0] - started, times[-1] - times[0])


def load(path: Path, threads: int, context: int) -> LlamaCppPeer:
    from llama_cpp import Llama

    options = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    return LlamaCppPeer(Llama(str(path), **options))
