"""The decoder-only transformer, described once: a :class:`ModelConfig` becomes the operator list of one decoding step.

Per layer six operators over four buffers: project to q, k and v, rotate and cache, attend, project back onto the
residual stream, gate, project back. Weights go by their Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
        ops += _layer(config, layer)
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
    """Of the tap after a layer, which keeps the residual stream."""
    return f"layer.{layer}"


def _layer(config: ModelConfig, layer: int) -> list[Operator]:
    prefix = f"model.layers.{layer}."
    attention = prefix + "self_attn."

    def norm(name: str) -> Norm:
        return Norm(prefix + name + ".weight", config.norm_eps)

    heads = (config.heads, config.kv_heads, config.head_dim)
    return [
        Linear(
            "hidden",
            tuple(f"{attention}{part}_proj.weight" for part in "qkv"),
            "qkv",
            norm=norm("input_layernorm"),
            biases=tuple(f"{attention}{part}_proj.bias" for part in "qkv") if config.qkv_bias else (),
        ),
        Attention(
            "qkv",
            "attention",
            layer,
            *heads,
            scale=config.head_dim**-0.5,
            window=config.windows[layer],
            q_norm=norm("self_attn.q_norm") if config.qk_norm else None,
            k_norm=norm("self_attn.k_norm") if config.qk_norm else None,
        ),
        Linear(
            "attention",
            (attention + "o_proj.weight",),
            "hidden",
            biases=(attention + "o_proj.bias",) if config.output_bias else (),
            accumulate=True,
        ),
        GatedLinear(
            "hidden",
            prefix + "mlp.gate_proj.weight",
            prefix + "mlp.up_proj.weight",
            "gated",
            norm=norm("post_attention_layernorm"),
            gate_bias=prefix + "mlp.gate_proj.bias" if config.mlp_bias else None,
            up_bias=prefix + "mlp.up_proj.bias" if config.mlp_bias else None,
        ),
        Linear(
            "gated",
            (prefix + "mlp.down_proj.weight",),
            "hidden",
            biases=(prefix + "mlp.down_proj.bias",) if config.mlp_bias else (),
            accumulate=True,
        ),
    ]


class Dimension(NamedTuple):
    """Rows or columns of a tensor, and the entries of ``config.json`` that say so."""

    size: int
    entries: str


def weight_dimensions(config: ModelConfig) -> Iterator[tuple[str, tuple[Dimension, ...]]]:
    """Every tensor that :func:`build_program` names and its dimensions: rows and columns, or the width of a vector."""
    hidden = Dimension(config.hidden_size, f"hidden_size {config.hidden_size}")
    inner = Dimension(config.intermediate_size, f"intermediate_size {config.intermediate_size}")
    head = Dimension(config.head_dim, f"head_dim {config.head_dim}")
    vocabulary = Dimension(config.vocab_size, f"vocab_size {config.vocab_size}")
    queries = Dimension(config.heads * head.size, f"num_attention_heads {config.heads} x {head.entries}")
    keys = Dimension(config.kv_heads * head.size, f"num_key_value_heads {config.kv_heads} x {head.entries}")
    yield EMBEDDING, (vocabulary, hidden)
    yield FINAL_NORM, (hidden,)
    if not config.tied_head:
        yield HEAD, (vocabulary, hidden)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        attention = prefix + "self_attn."
        for part, width in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{attention}{part}_proj.weight", (width, hidden)
            if config.qkv_bias:
                yield f"{attention}{part}_proj.bias", (width,)
        yield attention + "o_proj.weight", (hidden, queries)
        if config.output_bias:
            yield attention + "o_proj.bias", (hidden,)
        if config.qk_norm:
            yield attention + "q_norm.weight", (head,)
            yield attention + "k_norm.weight", (head,)
        for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield f"{prefix}mlp.{part}_proj.weight", (rows, columns)
            if config.mlp_bias:
                yield f"{prefix}mlp.{part}_proj.bias", (rows,)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that :func:`build_program` names and its shape: ``(rows, columns)``, or ``(width,)`` of a vector."""
    return {name: tuple(d.size for d in dimensions) for name, dimensions in weight_dimensions(config)}
