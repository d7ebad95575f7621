"""Types of the extension module; the prose is in the C++ sources under ``native``."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Draw: TypeAlias = tuple[float, int, float, float, int, int, int]
"""Temperature, top-k, top-p, min-p, seed, position and likely tokens, as in :class:`speq.graph.step.Draw`."""

class SplitFormat:
    def __init__(
        self,
        *,
        dtype: str,
        table_per_group: bool,
        residual_bits: int,
        group_size: int,
        edges: NDArray[np.float32],
        drops: NDArray[np.uint16],
        levels: NDArray[np.int8],
    ) -> None: ...

def encode(
    format: SplitFormat,
    *,
    table: NDArray[np.uint16],
    patterns: NDArray[np.uint16],
    importance: NDArray[np.float32],
    candidates: NDArray[np.float32],
    influence: NDArray[np.float32],
    coupling: NDArray[np.float32],
    passes: int,
    codes: NDArray[np.uint8],
    residual: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    escape_counts: NDArray[np.uint32],
    threads: int,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]: ...
def decode(
    format: SplitFormat,
    *,
    codes: NDArray[np.uint8],
    residual: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    escape_rows: NDArray[np.uint32],
    escape_columns: NDArray[np.uint16],
    escape_values: NDArray[np.uint16],
    table: NDArray[np.uint16],
    out: NDArray[np.uint16],
    threads: int,
) -> None: ...
def draft_values(
    format: SplitFormat,
    *,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def exponent_histogram(patterns: NDArray[np.uint16], bf16: bool, counts: NDArray[np.int64]) -> None: ...
def draw(
    logits: NDArray[np.float32],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
    likely: int,
    with_confidence: bool,
) -> tuple[int, float, list[tuple[int, float]]]: ...
def noise(tokens: list[int], seed: int, position: int, /) -> list[float]: ...
def read_bandwidth(bytes: int, threads: int, repeats: int, /) -> float: ...
def half_product(
    weights: NDArray[np.uint16], x: NDArray[np.float32], y: NDArray[np.float32], threads: int, /
) -> float: ...
def available_isas() -> list[str]: ...

class Matrix:
    @staticmethod
    def make(
        format: SplitFormat,
        shape: tuple[int, int],
        *,
        codes: NDArray[np.uint8],
        residual: NDArray[np.uint8],
        scales: NDArray[np.uint16],
        escape_rows: NDArray[np.uint32],
        escape_columns: NDArray[np.uint16],
        escape_values: NDArray[np.uint16],
        table: NDArray[np.uint16],
    ) -> Matrix: ...

_Norm = tuple[NDArray[np.float32] | None, float]

class Step:
    @staticmethod
    def make(
        isa: str,
        threads: int,
        max_tokens: int,
        keys: NDArray[np.uint16],
        values: NDArray[np.uint16],
        inverse_frequencies: list[float],
        rotary_scale: float,
        vocab_size: int,
        /,
    ) -> Step: ...
    def add_buffer(self, width: int, /) -> int: ...
    def add_matrix(self, weight: Matrix, /) -> int: ...
    def embed(self, matrix: int, out: int, /) -> None: ...
    def linear(
        self,
        x: int,
        norm: _Norm,
        parts: list[tuple[int, int, NDArray[np.float32] | None]],
        out: int,
        accumulate: bool,
        /,
    ) -> None: ...
    def gated_linear(
        self,
        x: int,
        norm: _Norm,
        gate: int,
        up: int,
        out: int,
        gate_bias: NDArray[np.float32] | None,
        up_bias: NDArray[np.float32] | None,
        /,
    ) -> None: ...
    def attention(
        self,
        qkv: int,
        out: int,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int,
        q_norm: _Norm,
        k_norm: _Norm,
        /,
    ) -> None: ...
    def head(self, x: int, norm: _Norm, matrix: int, /) -> None: ...
    def sample(self) -> None: ...
    def tap(self, x: int, /) -> int: ...
    def bind(self) -> None: ...
    def run(
        self,
        tokens: NDArray[np.int32],
        spans: NDArray[np.int32],
        pages: NDArray[np.int32],
        parents: NDArray[np.int32],
        wanted: NDArray[np.int32],
        draft: bool,
        draws: list[_Draw],
        confidences: bool,
        taps: list[int],
        first: int,
        last: int,
        /,
    ) -> None: ...
    def logits(self) -> NDArray[np.float32]: ...
    def drawn(self) -> list[tuple[int, float, list[tuple[int, float]]]]: ...
    def tapped(self, tap: int, /) -> NDArray[np.float32]: ...
    def buffer(self, index: int, /) -> NDArray[np.float32]: ...
    @property
    def operators(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
