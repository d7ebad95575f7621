"""Trained heads that nobody has trained, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speq.models.config import model_config
from speq.models.head import HeadConfig, parameter_shapes
from speq.training.layout import write_head


def write_random_head(
    path: Path, config: Mapping[str, Any], *, seed: int = 0, known: int = 120, **entries: Any
) -> Path:
    """A head with random weights for a model of such a config."""
    entries = {**config, **entries}
    sizes = HeadConfig.of(model_config(entries), 80, known, (1, 1, 2))
    rng = np.random.default_rng(seed)
    parameters = {
        name: (rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5 if len(shape) == 2 else 0.2) + (len(shape) == 1))
        for name, shape in parameter_shapes(sizes).items()
    }
    path.mkdir()
    ids = np.sort(rng.permutation(entries["vocab_size"])[:known])
    write_head(path, sizes, {n: p.astype(np.float32) for n, p in parameters.items()}, ids, entries, "tiny", 4, {})
    return path
