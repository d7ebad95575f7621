"""The directory of a head as it is read: ``config.json`` and ``model.safetensors`` in the layout of the speculators
library for EAGLE-3 heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.storage import read_json
from speq.errors import SpeqError
from speq.formats import to_float32
from speq.models.config import ModelConfig
from speq.models.head import HeadConfig, parameter_shapes
from speq.models.rope import rotary_frequencies

CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.json"


@dataclass(frozen=True)
class StoredHead:
    """A head as it was read.

    Attributes:
        config: its sizes.
        parameters: float32 arrays by name.
        known: the model's ids of its tokens, ``[vocabulary]``.
        name: what its model is called.
        path: its directory.
    """

    config: HeadConfig
    parameters: dict[str, NDArray[np.float32]]
    known: NDArray[np.int64]
    name: str
    path: Path

    def check_fits(self, model: ModelConfig) -> None:
        """Whether it is a head of this model.

        Raises:
            SpeqError: it is one of another model.
        """
        head, deepest = self.config, max(self.config.taps)
        for what, has, wants in (
            ("hidden size", head.hidden_size, model.hidden_size),
            ("vocabulary", head.model_vocabulary, model.vocab_size),
            ("number of heads", head.heads, model.heads),
            ("number of key and value heads", head.kv_heads, model.kv_heads),
            ("size of a head", head.head_dim, model.head_dim),
            ("number of layers", deepest, min(deepest, model.layers)),
        ):
            if has != wants:
                least = "at least " if what == "number of layers" else ""
                raise SpeqError(
                    f"the head {self.path} was trained for {self.name}, whose {what} is {least}{has}, not {wants}: "
                    "train one for this model with `speq train-head`"
                )


def read_head(directory: Path) -> StoredHead:
    """Read a head.

    Raises:
        SpeqError: missing or damaged files, or a head of another kind.
    """
    content = read_json(directory / CONFIG, f"{directory} is no trained head: it has no {CONFIG}")
    if content.get("speculators_model_type") != "eagle3":
        raise SpeqError(f"{directory / CONFIG} does not describe an EAGLE-3 head in the layout of speculators")
    file = SafetensorsFile(directory / WEIGHTS)
    try:
        layer = content["transformer_layer_config"]
        config = HeadConfig(
            hidden_size=int(layer["hidden_size"]),
            heads=int(layer["num_attention_heads"]),
            kv_heads=int(layer["num_key_value_heads"]),
            head_dim=int(layer["head_dim"]),
            norm_eps=float(layer["rms_norm_eps"]),
            rotary=rotary_frequencies(layer, int(layer["head_dim"]), int(layer["max_position_embeddings"])),
            inner=int(layer["intermediate_size"]),
            vocabulary=int(content["draft_vocab_size"]),
            model_vocabulary=int(layer["vocab_size"]),
            taps=tuple(int(tap) for tap in content["eagle_aux_hidden_state_layer_ids"]),
        )
        name = str(content["speculators_config"]["verifier"]["name_or_path"])
    except (KeyError, TypeError, ValueError):
        raise SpeqError(f"{directory / CONFIG} is damaged; train the head again") from None
    if not config.taps or min(config.taps) < 1:
        raise SpeqError(f"{directory / CONFIG} is damaged: a head reads the model after 1 of its layers or more")
    parameters = {}
    for key, shape in parameter_shapes(config).items():
        entry = file.entries.get(key)
        if entry is None or entry.shape != shape or entry.dtype != "BF16":
            raise SpeqError(f"{file.path}: tensor {key} is missing or does not fit {CONFIG}; train the head again")
        parameters[key] = to_float32(file.array(key), "bf16")
        if not np.isfinite(parameters[key]).all():
            raise SpeqError(f"{file.path}: tensor {key} holds NaN or infinity; train the head again")
    return StoredHead(config, parameters, _known(file, config), name, directory)


def _known(file: SafetensorsFile, config: HeadConfig) -> NDArray[np.int64]:
    """The model's ids of the head's tokens."""
    entry = file.entries.get("d2t")
    if entry is None or entry.shape != (config.vocabulary,) or entry.dtype != "I64":
        raise SpeqError(f"{file.path}: tensor d2t is missing or does not fit {CONFIG}; train the head again")
    known: NDArray[np.int64] = file.array("d2t") + np.arange(config.vocabulary, dtype=np.int64)
    if not (known[0] >= 0 and known[-1] < config.model_vocabulary and (np.diff(known) > 0).all()):
        raise SpeqError(f"{file.path}: d2t names no ascending ids of the model; train the head again")
    return known
