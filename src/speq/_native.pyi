"""Types of the extension module; the prose is in the C++ sources under ``kernels/native``."""

import numpy as np
from numpy.typing import NDArray

class SplitFormat:
    def __init__(
        self,
        bf16: bool,
        nested: bool,
        residual_bits: int,
        group_size: int,
        edges: NDArray[np.float32],
        drops: NDArray[np.int32],
        levels: NDArray[np.int16],
    ) -> None: ...

def encode(
    format: SplitFormat,
    table: NDArray[np.uint16],
    patterns: NDArray[np.uint16],
    importance: NDArray[np.float32],
    candidates: NDArray[np.float32],
    codes: NDArray[np.uint8],
    residual: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    escape_counts: NDArray[np.uint32],
    threads: int,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]: ...
def decode(
    format: SplitFormat,
    table: NDArray[np.uint16],
    codes: NDArray[np.uint8],
    residual: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    escape_rows: NDArray[np.uint32],
    escape_columns: NDArray[np.uint16],
    escape_values: NDArray[np.uint16],
    out: NDArray[np.uint16],
    threads: int,
) -> None: ...
def draft_values(
    format: SplitFormat,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint16],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def exponent_histogram(patterns: NDArray[np.uint16], bf16: bool, counts: NDArray[np.int64]) -> None: ...
def top1(logits: NDArray[np.float32], with_confidence: bool = True) -> tuple[int, float]: ...
def sample(
    logits: NDArray[np.float32],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> tuple[int, float]: ...
