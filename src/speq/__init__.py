"""speq: a language model drafts for itself with 4 of its 16 bits, and generates exactly the same text faster.

>>> import speq
>>> model = speq.load("smollm2-135m-instruct")
>>> for piece in model.stream("Why is the sky blue?", max_new_tokens=200):
...     print(piece.text, end="", flush=True)

Names are imported on first use, so that ``import speq`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speq.decoding.drafters import Ask, Context, Drafter, Proposing
    from speq.decoding.stats import Statistics
    from speq.decoding.stream import Piece
    from speq.decoding.verify import Proposal
    from speq.errors import SpeqError
    from speq.runtime.sampling import Sampling
    from speq.serving.api import Model, Stream
    from speq.serving.loading import load
    from speq.serving.result import Result

_HOMES = {
    "Ask": "speq.decoding.drafters",
    "Context": "speq.decoding.drafters",
    "Drafter": "speq.decoding.drafters",
    "Model": "speq.serving.api",
    "Piece": "speq.decoding.stream",
    "Proposal": "speq.decoding.verify",
    "Proposing": "speq.decoding.drafters",
    "Result": "speq.serving.result",
    "Sampling": "speq.runtime.sampling",
    "SpeqError": "speq.errors",
    "Statistics": "speq.decoding.stats",
    "Stream": "speq.serving.api",
    "load": "speq.serving.loading",
}

__all__ = [
    "Ask",
    "Context",
    "Drafter",
    "Model",
    "Piece",
    "Proposal",
    "Proposing",
    "Result",
    "Sampling",
    "SpeqError",
    "Statistics",
    "Stream",
    "load",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("speq")
    if name not in _HOMES:
        raise AttributeError(f"module 'speq' has no attribute {name!r}")
    from speq.processors import spare_blas

    spare_blas()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
