"""Parts of a model's step as programs of their own, so that operators can be timed alone over all layers.

All layers' weights of one kind are read in turn, as a pass does, so they come from memory and not from a cache. Small
models would fit into the processor's cache even so; :func:`evict` pushes them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from speq.backends.cpu import NativeStep
from speq.formats import SplitTensor
from speq.graph.ops import Operator, StepProgram
from speq.graph.step import Weights
from speq.limits import PAGE
from speq.models.config import ModelConfig
from speq.models.decoder import build_program
from speq.runtime.kv import KVPool

_EVICT = np.ones(1 << 24, dtype=np.float32)  # 64 MiB, more than the last level of most caches


@dataclass(frozen=True)
class Group:
    """The operators of one kind, of all layers.

    Attributes:
        name: of the kind, as shown in tables.
        ops: in the order of the layers.
        matrices: the weight matrices they multiply with, none for other operators.
    """

    name: str
    ops: tuple[Operator, ...]
    matrices: tuple[str, ...] = ()

    @property
    def is_product(self) -> bool:
        return bool(self.matrices)


def groups(config: ModelConfig) -> list[Group]:
    """The kinds of operators of a model: the five matrix products, then embedding and attention."""
    found: dict[str, list[Operator]] = {}
    for op in build_program(config).ops:
        if not op.products and not op.writes:  # it does nothing in the passes that are timed
            continue
        found.setdefault(_kind(op), []).append(op)
    made = [Group(name, tuple(ops), sum((op.products for op in ops), ())) for name, ops in found.items()]
    return sorted(made, key=lambda group: not group.is_product)


def products(config: ModelConfig) -> list[Group]:
    """The groups that are matrix products."""
    return [group for group in groups(config) if group.is_product]


def bind(
    config: ModelConfig,
    weights: Weights,
    ops: tuple[Operator, ...],
    cache: KVPool,
    max_tokens: int,
    threads: int | None,
) -> NativeStep:
    """A native step of these operators alone; an embedding comes first, so that the residual stream is never empty."""
    program: StepProgram = build_program(config)
    first = program.ops[0]
    chosen = ops if ops[:1] == (first,) else (first, *ops)
    return NativeStep(replace(program, ops=chosen), weights, cache, max_tokens, threads=threads)


def small_cache(config: ModelConfig, positions: int) -> KVPool:
    """A cache of random keys and values, all of it in memory: zeros that were never written would not be read."""
    cache = KVPool(config.layers, config.kv_heads, config.head_dim, context=positions)
    random = np.random.default_rng(0)
    for part in (cache.keys, cache.values):
        for page in part[: -(-positions // PAGE)]:
            page[...] = random.standard_normal(page.shape, dtype=np.float32).astype(np.float16)
    return cache


def plane_bytes(weights: Weights, names: tuple[str, ...], *, draft: bool) -> int:
    """Bytes of weights that one pass over these matrices reads: codes and scales, and for exact weights the rest."""
    total = 0
    for name in names:
        tensor = weights[name]
        assert isinstance(tensor, SplitTensor)
        planes = tensor.planes()
        total += sum(plane.nbytes for key, plane in planes.items() if not draft or key in ("codes", "scales"))
    return total


def weight_count(weights: Weights, names: tuple[str, ...]) -> int:
    """Weights in these matrices."""
    return sum(int(np.prod(weights[name].shape)) for name in names)


def evict() -> float:
    """Read more memory than a cache holds."""
    return float(_EVICT.sum())


def token_ids(vocab_size: int, count: int, seed: int = 0) -> NDArray[np.int32]:
    """Random token ids, int32 ``[count]``."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.int32)


_KINDS = {"q_proj": "q, k, v", "o_proj": "attention out", "gate_proj": "gate, up", "down_proj": "down"}


def _kind(op: Operator) -> str:
    """What tables call an operator: by its first matrix; by the input where it has none."""
    if op.products:
        return _KINDS.get(op.products[0].split(".")[-2], "head")
    return "attention" if op.reads else "embedding row"
