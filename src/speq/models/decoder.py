"""The decoder-only transformer, described once: a :class:`ModelConfig` becomes the operator list of one decoding step.

Per layer six operators over four buffers: project to q, k and v, rotate and cache, attend, project back onto the
residual stream, gate, project back. Weights go by their Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, Operator, Sample, StepProgram, Tap
from speq.models.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


def build_program(config: ModelConfig) -> StepProgram:
    """The operators of one decoding step, in order.

    Buffers: ``hidden`` the residual stream, ``qkv`` queries, keys and values side by side, ``attention`` the heads'
        outputs, ``gated`` the inner activations of the feed-forward part.
    """
    ops: list[Operator] = [Embed(EMBEDDING, "hidden")]
    for layer in range(config.layers):
        ops += _layer(config, layer)[0]
        ops.append(Tap("hidden", tap_name(layer)))
    ops.append(LMHead("hidden", EMBEDDING if config.tied_head else HEAD, Norm(FINAL_NORM, config.norm_eps)))
    ops.append(Sample())
    return StepProgram(
        ops=tuple(ops),
        buffers={
            "hidden": config.hidden_size,
            "qkv": (config.heads + 2 * config.kv_heads) * config.head_dim,
            "attention": config.heads * config.head_dim,
            "gated": config.intermediate_size,
        },
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        inv_freq=config.rotary.inv_freq,
        rotary_scale=config.rotary.scale,
    )


def tap_name(layer: int) -> str:
    """What the tap after a layer, which keeps the residual stream, is called."""
    return f"layer.{layer}"


class Dimension(NamedTuple):
    """Rows or columns of a tensor, and the entries of ``config.json`` that say so."""

    size: int
    entries: str


Tensors: TypeAlias = dict[str, tuple[Dimension, ...]]
"""Tensors by name: rows and columns, or the width of a vector."""


def weight_dimensions(config: ModelConfig) -> Iterator[tuple[str, tuple[Dimension, ...]]]:
    """Every tensor that :func:`build_program` names and its dimensions, layer by layer."""
    sizes = _Sizes(config)
    yield EMBEDDING, (sizes.vocabulary, sizes.hidden)
    yield FINAL_NORM, (sizes.hidden,)
    if not config.tied_head:
        yield HEAD, (sizes.vocabulary, sizes.hidden)
    for layer in range(config.layers):
        yield from _layer(config, layer)[1].items()


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that :func:`build_program` names and its shape: ``(rows, columns)``, or ``(width,)`` of a vector."""
    return {name: tuple(d.size for d in dimensions) for name, dimensions in weight_dimensions(config)}


class _Sizes:
    """The dimensions that the tensors of a model have."""

    def __init__(self, config: ModelConfig) -> None:
        self.hidden = Dimension(config.hidden_size, f"hidden_size {config.hidden_size}")
        self.inner = Dimension(config.intermediate_size, f"intermediate_size {config.intermediate_size}")
        self.head = head = Dimension(config.head_dim, f"head_dim {config.head_dim}")
        self.vocabulary = Dimension(config.vocab_size, f"vocab_size {config.vocab_size}")
        self.queries = Dimension(config.heads * head.size, f"num_attention_heads {config.heads} x {head.entries}")
        self.keys = Dimension(config.kv_heads * head.size, f"num_key_value_heads {config.kv_heads} x {head.entries}")


def _layer(config: ModelConfig, layer: int) -> tuple[list[Operator], Tensors]:
    """The operators of a layer, and the tensors that they read."""
    sizes, tensors = _Sizes(config), Tensors()
    prefix = f"model.layers.{layer}."

    def norm(name: str, width: Dimension) -> Norm:
        tensors[f"{prefix}{name}.weight"] = (width,)
        return Norm(f"{prefix}{name}.weight", config.norm_eps)

    def projection(name: str, rows: Dimension, columns: Dimension, is_biased: bool) -> tuple[str, str | None]:
        weight, bias = f"{prefix}{name}_proj.weight", f"{prefix}{name}_proj.bias"
        tensors[weight] = (rows, columns)
        if is_biased:
            tensors[bias] = (rows,)
        return weight, bias if is_biased else None

    def linear(x: str, parts: list[tuple[str, str | None]], out: str, norm: Norm | None = None) -> Linear:
        biases = tuple(bias for _, bias in parts if bias)
        return Linear(x, tuple(weight for weight, _ in parts), out, norm, biases, accumulate=out == "hidden")

    hidden, inner, queries, keys = sizes.hidden, sizes.inner, sizes.queries, sizes.keys
    before, between = norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden)
    qkv = [
        projection(f"self_attn.{part}", rows, hidden, config.qkv_bias)
        for part, rows in (("q", queries), ("k", keys), ("v", keys))
    ]
    output = projection("self_attn.o", hidden, queries, config.output_bias)
    q_norm, k_norm = (norm(f"self_attn.{part}_norm", sizes.head) if config.qk_norm else None for part in ("q", "k"))
    gate, gate_bias = projection("mlp.gate", inner, hidden, config.mlp_bias)
    up, up_bias = projection("mlp.up", inner, hidden, config.mlp_bias)
    down = projection("mlp.down", hidden, inner, config.mlp_bias)
    ops: list[Operator] = [
        linear("hidden", qkv, "qkv", before),
        Attention(
            "qkv",
            "attention",
            layer,
            config.heads,
            config.kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            window=config.windows[layer],
            q_norm=q_norm,
            k_norm=k_norm,
        ),
        linear("attention", [output], "hidden"),
        GatedLinear("hidden", gate, up, "gated", between, gate_bias, up_bias),
        linear("gated", [down], "hidden"),
    ]
    return ops, tensors
