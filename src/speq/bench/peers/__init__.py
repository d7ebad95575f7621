"""Other engines on the same weights and prompts, each in a process of its own, and left out where it is absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

Files: TypeAlias = Literal["converted", "huggingface", "gguf-f16", "gguf-bf16"]
"""What an engine reads: the converted checkpoint, the restored one, or a GGUF file made from that."""


@dataclass(frozen=True)
class Generation:
    """New token ids, seconds to the first of them, and seconds from the first to the last."""

    token_ids: list[int]
    first_seconds: float
    decode_seconds: float


class Peer(Protocol):
    """A loaded engine."""

    def generate(self, ids: list[int], tokens: int) -> Generation:
        """Continue ``ids`` greedily by exactly ``tokens`` tokens, whatever the model thinks of ending its text."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """An engine as a benchmark runs it.

    Attributes:
        name: of the engine, as ``--engine`` takes it.
        about: for the report: what it runs and on which weights.
        module: its adapter, with ``load(path, threads, context, **options) -> Peer``.
        files: what it reads.
        package: the module that must be installed, and ``install`` the package it comes in.
        memory: what it needs, in sizes of the 16-bit checkpoint.
        options: for ``load``.
    """

    name: str
    about: str
    module: str
    files: Files
    package: str = ""
    install: str = ""
    memory: float = 1.2
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """Why the engine cannot run here, or None if it can."""
        if not self.package or find_spec(self.package):
            return None
        return f"{self.name} is left out: install it with `pip install {self.install}`"


_HERE = "speq.bench.peers."
PLAIN = "speq-plain"

ENGINES: Mapping[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        EngineSpec(PLAIN, "speq without drafts", _HERE + "speq_engine", "converted", options={"draft": "none"}),
        EngineSpec("speq", "speq, drafting for itself", _HERE + "speq_engine", "converted", options={"draft": "auto"}),
        EngineSpec(
            "transformers-bf16",
            "Hugging Face transformers, the original weights in BF16",
            _HERE + "transformers_engine",
            "huggingface",
            "transformers",
            "transformers torch",
            options={"dtype": "bfloat16"},
        ),
        EngineSpec(
            "transformers-fp32",
            "Hugging Face transformers, the weights widened to FP32",
            _HERE + "transformers_engine",
            "huggingface",
            "transformers",
            "transformers torch",
            memory=2.2,
            options={"dtype": "float32"},
        ),
        EngineSpec(
            "llama.cpp-f16",
            "llama.cpp on a GGUF file in F16",
            _HERE + "llama_cpp_engine",
            "gguf-f16",
            "llama_cpp",
            "llama-cpp-python",
        ),
        EngineSpec(
            "llama.cpp-bf16",
            "llama.cpp on a GGUF file in BF16",
            _HERE + "llama_cpp_engine",
            "gguf-bf16",
            "llama_cpp",
            "llama-cpp-python",
        ),
        EngineSpec(
            "openvino-f16",
            "OpenVINO GenAI on a GGUF file in F16",
            _HERE + "openvino_engine",
            "gguf-f16",
            "openvino_genai",
            "openvino-genai",
            memory=3.2,
        ),
        EngineSpec(
            "openvino-lookup",
            "OpenVINO GenAI on the same file, drafting by prompt lookup",
            _HERE + "openvino_engine",
            "gguf-f16",
            "openvino_genai",
            "openvino-genai",
            memory=3.2,
            options={"lookup": True},
        ),
    )
}

DEFAULT = tuple(name for name in ENGINES if name != "llama.cpp-bf16")


def load_peer(spec: EngineSpec, path: Path, threads: int, context: int) -> Peer:
    """Load an engine into this process."""
    from importlib import import_module

    peer: Peer = import_module(spec.module).load(path, threads, context, **spec.options)
    return peer
