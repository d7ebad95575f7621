"""Types of the extension module; the prose is in the C++ sources under ``kernels/native``."""

import numpy as np
from numpy.typing import NDArray

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
