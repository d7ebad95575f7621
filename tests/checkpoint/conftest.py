"""Small checkpoints, written by other libraries than the one under test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules shared by these tests

from hf_models import CONFIG, MakeModel, Tensors, save


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a Hugging Face directory: ``make_model(tensors, name="model", shards=1, tokenizer=True)``."""

    def make(tensors: Tensors, name: str = "model", shards: int = 1, tokenizer: bool = True, **config: Any) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG | config))
        if tokenizer:
            (path / "tokenizer.json").write_text("{}")
        if shards == 1:
            save(path / "model.safetensors", tensors)
            return path
        names = list(tensors)
        weight_map = {}
        for index in range(shards):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            save(path / file, {key: tensors[key] for key in names[index::shards]})
            weight_map |= dict.fromkeys(names[index::shards], file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return path

    return make
