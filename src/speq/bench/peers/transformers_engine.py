"""Hugging Face transformers, with its own ``generate`` and key-value cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from speq.bench.peers import Generation


class _Clock:
    """A streamer that notes when tokens come; the prompt is what it gets first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class TransformersPeer:
    """A causal language model of transformers on the CPU."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: list[int], tokens: int) -> Generation:
        import torch

        clock, prompt = _Clock(), torch.tensor([ids])
        started = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, streamer=clock
            )
        _, first, *_ = clock.times
        return Generation(output[0, len(ids) :].tolist(), first - started, clock.times[-1] - first)


def load(path: Path, threads: int, context: int, dtype: str) -> TransformersPeer:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    return TransformersPeer(model)
