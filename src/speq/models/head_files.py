"""The directory of a head as it is read: ``config.json`` and ``model.safetensors`` in any of these layouts.

* That of the speculators library (``speculators_model_type``) for EAGLE-3, which ``speq train-head`` writes, with its
  options ``norm_before_residual``, ``norm_before_fc`` and ``norm_output``; and for EAGLE-1 (``eagle``), with
  ``layernorms`` and ``fusion_bias``.
* That of EAGLE's own code: EAGLE-1 and EAGLE-2 as ``fc`` and ``layers.0``, without a norm before the layer and behind
  it; EAGLE-3 as ``fc``, ``midlayer``, ``norm``, ``lm_head`` and ``d2t``, whose hidden states come from after 2, n / 2
  and n - 3 layers unless the config says otherwise. HASS's names of three norms beside EAGLE-1's.

Two things are not certain. Where ``fc_norm`` is set, the names ``fc_norm.0`` and so on of its norms are a guess. And
where a head has a ``pre_lm_head_layernorm``, the state before it is taken to stand for the next hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.foreign import describe_file
from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.storage import read_json
from speq.checkpoint.store import widen
from speq.errors import SpeqError
from speq.models.config import ModelConfig
from speq.models.head import LAYER, OUTPUT_HEAD, HeadConfig, Structure, known_extras, parameter_shapes
from speq.models.rope import rotary_frequencies

CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.json"

_PICKLED = "pytorch_model.bin"
_SPECULATORS: Mapping[str, Structure] = {"eagle": "eagle1", "eagle3": "eagle3"}
_FLOATS = ("F16", "BF16", "F32", "F64")
_SPELLINGS = {
    "midlayer.": LAYER,
    "transformer.": LAYER,
    "fusion_fc.": "fc.",
    "embed_layernorm.": "embedding_layernorm.",
    "hidden_layernorm.": LAYER + "input_layernorm.",
    "lm_head_layernorm.": "pre_lm_head_layernorm.",
}
_UNREAD = ("t2d", "rotary_emb.inv_freq", "verifier_lm_head.weight", "verifier_norm.weight")
"""Ends of names of tensors that say nothing which is not known otherwise."""
_PROMISED = {
    "norm_before_fc": "input_norm.weight",
    "fc_norm": "fc_norm.0.weight",
    "layernorms": "embedding_layernorm.weight",
    "fusion_bias": "fc.bias",
}
"""Options of a config and a tensor that each brings along."""


@dataclass(frozen=True)
class StoredHead:
    """A head as it was read.

    Attributes:
        config: its sizes.
        parameters: float32 arrays by name.
        known: the model's ids of its tokens, ``[vocabulary]``.
        name: what its model is called; empty if nobody says.
        path: its directory.
    """

    config: HeadConfig
    parameters: dict[str, NDArray[np.float32]]
    known: NDArray[np.int64]
    name: str
    path: Path

    def of_model(self, model: ModelConfig) -> StoredHead:
        """The head as one of this model: it knows which layers it reads.

        Raises:
            SpeqError: it is one of another model.
        """
        head, taps = self.config, self.config.taps_in(model.layers)
        for what, has, wants in (
            ("hidden size", head.hidden_size, model.hidden_size),
            ("vocabulary", head.model_vocabulary, model.vocab_size),
        ):
            if has != wants:
                raise self._of_another(f"{what} is {has}, not {wants}")
        if max(taps) > model.layers or min(taps) < 1:
            least = max(*taps, *(model.layers - tap + 1 for tap in taps))
            raise self._of_another(f"number of layers is at least {least}, not {model.layers}")
        return replace(self, config=replace(head, taps=taps))

    def _of_another(self, what: str) -> SpeqError:
        return SpeqError(
            f"the head {self.path} was trained for {self.name or 'another model'}, whose {what}: train one for this "
            "model with `speq train-head`"
        )


def read_head(directory: Path) -> StoredHead:
    """Read a head.

    Raises:
        SpeqError: missing or damaged files, or a head of another kind.
    """
    content = read_json(directory / CONFIG, f"{directory} is no trained head: it has no {CONFIG}")
    file = _open(directory)
    stored = _stored_names(file)
    structure = _structure(directory, content, stored)
    config = _config(directory, content, structure, file, stored)
    shapes = parameter_shapes(config)
    unknown = next((each for name, each in stored.items() if name not in shapes and name != "d2t"), None)
    if unknown:
        raise SpeqError(
            f"{file.path}: no layout that is known has the tensor {unknown}: give an EAGLE-1, EAGLE-2 or EAGLE-3 head"
        )
    parameters = {}
    for name, shape in shapes.items():
        entry = file.entries.get(stored.get(name, ""))
        if entry is None or entry.shape != shape or entry.dtype not in _FLOATS:
            raise SpeqError(
                f"{file.path}: tensor {stored.get(name, name)} is missing or does not fit {CONFIG}; train the head "
                "again, or copy it again"
            )
        parameters[name] = widen(file.array(stored[name]), entry.dtype)
        if not np.isfinite(parameters[name]).all():
            raise SpeqError(f"{file.path}: tensor {stored[name]} holds NaN or infinity; train the head again")
    speculators = content.get("speculators_config")
    verifier = speculators.get("verifier") if isinstance(speculators, Mapping) else None
    named = verifier.get("name_or_path") if isinstance(verifier, Mapping) else None
    return StoredHead(config, parameters, _known(file, config), str(named or ""), directory)


def _open(directory: Path) -> SafetensorsFile:
    pickled = directory / _PICKLED
    if pickled.exists() and not (directory / WEIGHTS).exists():
        what = describe_file(pickled, "safetensors")
        raise SpeqError(f"{pickled} {what or f'is not read: save it as {WEIGHTS}'}")
    return SafetensorsFile(directory / WEIGHTS)


def _stored_names(file: SafetensorsFile) -> dict[str, str]:
    """Names of tensors in the file by the names that they have here."""
    names = {}
    for stored in file.entries:
        if not stored.endswith(_UNREAD):
            spelling = next((each for each in _SPELLINGS if stored.startswith(each)), "")
            names[_SPELLINGS.get(spelling, "") + stored.removeprefix(spelling)] = stored
    return names


def _structure(directory: Path, content: Mapping[str, Any], names: Mapping[str, str]) -> Structure:
    kind = content.get("speculators_model_type")
    if isinstance(kind, str) and kind in _SPECULATORS:
        return _SPECULATORS[kind]
    if kind is None and {"fc.weight", LAYER + "self_attn.q_proj.weight"} <= names.keys():
        return "eagle3" if LAYER + "hidden_norm.weight" in names else "eagle1"
    what = "does not describe a head" if kind is None else f"describes a speculator of the kind {kind!r}"
    raise SpeqError(
        f"{directory / CONFIG} {what}: give an EAGLE-1, EAGLE-2 or EAGLE-3 head in the layout of EAGLE's code or of "
        "speculators"
    )


def _config(
    directory: Path,
    content: Mapping[str, Any],
    structure: Structure,
    file: SafetensorsFile,
    stored: Mapping[str, str],
) -> HeadConfig:
    """The sizes of a head, with those parameters of its own that it has."""
    path = directory / CONFIG
    try:
        layer = content.get("transformer_layer_config", content)
        more = content.get("eagle_config") or {}
        options = {**more, **content}
        hidden, heads = int(layer["hidden_size"]), int(layer["num_attention_heads"])
        head_dim = int(layer.get("head_dim") or hidden // heads)
        model_vocabulary = int(layer["vocab_size"])
        output_head = file.entries.get(stored.get(OUTPUT_HEAD, ""))
        rows = output_head.shape[0] if output_head else model_vocabulary
        is_eagle3 = structure == "eagle3"
        config = HeadConfig(
            hidden_size=hidden,
            heads=heads,
            kv_heads=int(layer.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            norm_eps=float(layer.get("rms_norm_eps", 1e-6)),
            rotary=rotary_frequencies(layer, head_dim, int(layer.get("max_position_embeddings", 2048))),
            inner=int(layer["intermediate_size"]),
            vocabulary=int(content.get("draft_vocab_size") or rows) if is_eagle3 else model_vocabulary,
            model_vocabulary=model_vocabulary,
            taps=tuple(int(tap) for tap in options.get("eagle_aux_hidden_state_layer_ids") or ()) if is_eagle3 else (),
            structure=structure,
            window=_window(layer),
            adds_to_normed=is_eagle3 and options.get("norm_before_residual") is True,
            goes_on_normed=is_eagle3 and options.get("norm_output") is True,
        )
        layers, activation = layer.get("num_hidden_layers", 1), layer.get("hidden_act", "silu")
        config = replace(config, extras=known_extras(config) & (stored.keys() | _promised(options)))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError):
        raise SpeqError(f"{path} is damaged; train the head again, or copy it again") from None
    except SpeqError as error:
        raise SpeqError(f"the head {directory}: {error}") from None
    if min((hidden, heads, config.kv_heads, head_dim, config.inner, config.vocabulary, model_vocabulary)) < 1:
        raise SpeqError(f"{path} is damaged: a size is below 1; train the head again, or copy it again")
    if heads % config.kv_heads or head_dim % 2:
        raise SpeqError(f"{path} is damaged: its heads do not fit; train the head again, or copy it again")
    if config.taps and min(config.taps) < 1:
        raise SpeqError(f"{path} is not supported: a head reads the model after 1 of its layers or more")
    if layers != 1:
        raise SpeqError(f"{path} is not supported: it has {layers} layers, and heads have one")
    if activation not in ("silu", "swish"):
        raise SpeqError(f"{path} is not supported: hidden_act is {activation!r}, and heads have 'silu'")
    return config


def _promised(options: Mapping[str, Any]) -> set[str]:
    return {name for option, name in _PROMISED.items() if options.get(option) is True}


def _window(layer: Mapping[str, Any]) -> int | None:
    """Last positions that the layer sees, where it slides over the text."""
    kinds = layer.get("layer_types") or ()
    return int(layer["sliding_window"]) if "sliding_attention" in kinds else None


def _known(file: SafetensorsFile, config: HeadConfig) -> NDArray[np.int64]:
    """The model's ids of the head's tokens."""
    entry, own = file.entries.get("d2t"), np.arange(config.vocabulary, dtype=np.int64)
    if entry is None and config.vocabulary == config.model_vocabulary:
        return own
    if entry is None or entry.shape != (config.vocabulary,) or entry.dtype not in ("I64", "I32"):
        raise SpeqError(f"{file.path}: tensor d2t is missing or does not fit {CONFIG}; train the head again")
    known: NDArray[np.int64] = file.array("d2t") + own
    if not (known[0] >= 0 and known[-1] < config.model_vocabulary and (np.diff(known) > 0).all()):
        raise SpeqError(f"{file.path}: d2t names no ascending ids of the model; train the head again")
    return known
