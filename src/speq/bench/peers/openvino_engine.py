"""OpenVINO GenAI, plain or with its prompt lookup: drafts copied from earlier text that ends in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from speq.bench.peers import Generation

_LOOKUP_TOKENS, _LOOKUP_NGRAM = 5, 3  # the values of OpenVINO's own sample


class OpenVinoPeer:
    """A pipeline of openvino-genai on the CPU."""

    def __init__(self, pipeline: Any, lookup: bool) -> None:
        self._pipeline, self._lookup = pipeline, lookup

    def generate(self, ids: list[int], tokens: int) -> Generation:
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        if self._lookup:
            config.num_assistant_tokens, config.max_ngram_size = _LOOKUP_TOKENS, _LOOKUP_NGRAM
        prompt = np.array([ids], dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(np.ones_like(prompt)))
        result = self._pipeline.generate(inputs, config)
        metrics = result.perf_metrics
        first = metrics.get_ttft().mean / 1e3
        return Generation(list(result.tokens[0])[:tokens], first, metrics.get_generate_duration().mean / 1e3 - first)


def load(path: Path, threads: int, context: int, lookup: bool = False) -> OpenVinoPeer:
    import openvino_genai

    options = {"INFERENCE_NUM_THREADS": threads} | ({"prompt_lookup": True} if lookup else {})
    return OpenVinoPeer(openvino_genai.LLMPipeline(str(path), "CPU", **options), lookup)
