"""What a model is made of, read from a Hugging Face ``config.json``.

The supported families differ in few places (biases, per-head norms, sliding windows, defaults of missing entries); a
:class:`Family` states them, and :func:`model_config` turns a file into the one :class:`ModelConfig` that the decoder
knows. Anything that the decoder would compute wrongly is refused by name here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from speq.errors import SpeqError
from speq.models.rope import RotaryFrequencies, rotary_frequencies

MOST = 2**31 - 1
"""The largest count: native code keeps them in 32 bits."""

MOST_LAYERS = 65536


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` departs from the common decoder.

    Attributes:
        qkv_bias, output_bias: biases of the attention projections; "option": as the file's ``attention_bias`` says.
        qk_norm: an RMSNorm on each query and key head.
        mlp_bias: whether the file's ``mlp_bias`` counts: biases of the feed-forward projections.
        window: which layers a ``sliding_window`` applies to.
        defaults: values of entries that files of this family may leave out.
    """

    qkv_bias: Literal["always", "option", "never"]
    output_bias: Literal["option", "never"]
    qk_norm: bool = False
    mlp_bias: bool = False
    window: Literal["never", "all", "by layer"] = "never"
    defaults: Mapping[str, int] = field(default_factory=dict)


_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
FAMILIES: Mapping[str, Family] = {
    "llama": Family("option", "option", mlp_bias=True, defaults={"max_position_embeddings": 2048}),
    "mistral": Family(
        "never",
        "never",
        window="all",
        defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Family("always", "never", window="by layer", defaults=_QWEN),
    "qwen3": Family("option", "option", True, window="by layer", defaults={**_QWEN, "head_dim": 128}),
}
_MEANINGFUL_NULLS = ("num_key_value_heads", "sliding_window")
"""Entries whose null says something: as many key-value heads as heads, no window."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. ``windows`` says of each layer how many last positions it sees, None for all."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_head: bool
    windows: tuple[int | None, ...]
    rotary: RotaryFrequencies

    @property
    def context_length(self) -> int:
        """Positions the model is made for."""
        return self.rotary.context_length


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a parsed ``config.json``.

    Raises:
        SpeqError: an unsupported architecture or option, or a missing or senseless entry, by name.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or model_type is None:
        listed = config.get("architectures")
        named = model_type or (listed[0] if isinstance(listed, list) and listed else "unnamed")
        raise SpeqError(
            f"config.json: architecture {named!r} is not supported; supported are "
            f"{', '.join(FAMILIES)} (SmolLM2 is a llama, Qwen2.5 a qwen2)"
        )
    _refuse_unsupported(config, model_type)

    given = {key: value for key, value in config.items() if value is not None or key in _MEANINGFUL_NULLS}
    entries = {**family.defaults, **given}
    heads = _count(entries, "num_attention_heads")
    kv_heads = heads if entries.get("num_key_value_heads") is None else _count(entries, "num_key_value_heads")
    hidden_size = _count(entries, "hidden_size")
    head_dim = _count(entries, "head_dim", hidden_size // heads)
    if heads % kv_heads:
        raise SpeqError(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    if head_dim % 2:
        raise SpeqError(f"config.json: head_dim {head_dim} is odd, rotary embedding needs pairs")
    layers = _count(entries, "num_hidden_layers", most=MOST_LAYERS)
    attention_bias = "option" in (family.qkv_bias, family.output_bias) and _flag(entries, "attention_bias")
    return ModelConfig(
        model_type=model_type,
        vocab_size=_count(entries, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_count(entries, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=_small_number(entries, "rms_norm_eps", 1e-6),
        qkv_bias=family.qkv_bias == "always" or (family.qkv_bias == "option" and attention_bias),
        output_bias=family.output_bias == "option" and attention_bias,
        mlp_bias=family.mlp_bias and _flag(entries, "mlp_bias"),
        qk_norm=family.qk_norm,
        tied_head=_flag(entries, "tie_word_embeddings"),
        windows=_windows(entries, family, layers),
        rotary=rotary_frequencies(config, head_dim, _count(entries, "max_position_embeddings")),
    )


def _refuse_unsupported(config: Mapping[str, Any], model_type: str) -> None:
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise SpeqError(f"config.json: 'architectures' is {architectures!r}, must be a list of names")
    base = f"{model_type}model"
    if architectures and not any(name.endswith("ForCausalLM") or name.lower() == base for name in architectures):
        raise SpeqError(f"config.json: {architectures[0]} is no model that continues a text (...ForCausalLM)")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise SpeqError(f"config.json: hidden_act {activation!r} is not supported; supported is 'silu'")
    if config.get("is_causal", True) is not True:
        raise SpeqError("config.json: is_causal other than true (attention to later tokens) is not supported")
    if config.get("per_layer_config"):
        raise SpeqError("config.json: per_layer_config (layers that differ in their sizes) is not supported")
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        raise SpeqError(
            f"config.json: quantization_config ({method or 'unnamed'}) is not supported; use the 16-bit checkpoint"
        )


def _windows(entries: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    kinds = _layer_kinds(entries, layers)
    inactive = family.window == "never" or (family.window == "by layer" and not _flag(entries, "use_sliding_window"))
    if inactive or entries.get("sliding_window") is None:
        if kinds and "sliding_attention" in kinds:
            raise SpeqError("config.json: layer_types names 'sliding_attention', but no sliding_window is in force")
        return (None,) * layers
    window = _count(entries, "sliding_window")
    if family.window == "all":
        return (window,) * layers
    if kinds is None:
        first = _count(entries, "max_window_layers", least=0)
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _layer_kinds(entries: Mapping[str, Any], layers: int) -> list[str] | None:
    """The file's ``layer_types``, one of two names each; None where it has none."""
    kinds = entries.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list):
        raise SpeqError(f"config.json: layer_types is {kinds!r}, must be a list of names")
    kinds = ["full_attention" if kind == "attention" else kind for kind in kinds]
    unknown = next((kind for kind in kinds if kind not in ("full_attention", "sliding_attention")), None)
    if unknown is not None:
        raise SpeqError(f"config.json: layer type {unknown!r} is not supported")
    if len(kinds) != layers:
        raise SpeqError(f"config.json: layer_types has {len(kinds)} entries for {layers} layers")
    return kinds


def _flag(entries: Mapping[str, Any], key: str) -> bool:
    value = entries.get(key, False)
    if not isinstance(value, bool):
        raise SpeqError(f"config.json: {key!r} is {value!r}, must be true or false")
    return value


def _count(entries: Mapping[str, Any], key: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
    value = entries.get(key, default)
    if value is None:
        raise SpeqError(f"config.json: {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpeqError(f"config.json: {key!r} is {value!r}, must be a whole number from {least} on")
    if value > most:
        raise SpeqError(f"config.json: {key!r} is {value}, must be at most {most}")
    return value


def _small_number(entries: Mapping[str, Any], key: str, default: float) -> float:
    value = entries.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise SpeqError(f"config.json: {key!r} is {value!r}, must be a number from 0 to 1")
    return float(value)
