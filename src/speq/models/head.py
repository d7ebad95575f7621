"""A head that proposes tokens, described once: its sizes, its parameters by their public names, its operators.

EAGLE-3's layer: hidden states of three depths come down to one, a decoder layer reads it beside the embedding of the
token that follows, and an output head of fewer tokens says which token comes after that one. The layer's output stands
in for the hidden state when the head goes on by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, Operator, Sample, StepProgram
from speq.models.config import ModelConfig
from speq.models.decoder import EMBEDDING, tap_name
from speq.models.rope import RotaryFrequencies

LAYER = "layers.0."
FUSE = 1
"""Operators of the program that make one hidden state of the taps; the others are the layer."""
FEATURES, EMBEDDED, HIDDEN = "features", "embedded", "hidden"
"""Buffers that the caller fills: hidden states at the taps, side by side; embeddings of the tokens; the states that the
layer reads and replaces.
"""

_SIDES = ("embedded", "hidden")  # the columns of q, k and v that read the embedding, and those that read the state


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a head.

    Attributes:
        hidden_size, heads, kv_heads, head_dim, norm_eps, rotary: those of the model.
        inner: width of the feed-forward part.
        vocabulary: tokens that the head can propose.
        model_vocabulary: tokens of the model.
        taps: after how many of the model's layers its residual stream is read.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rotary: RotaryFrequencies
    inner: int
    vocabulary: int
    model_vocabulary: int
    taps: tuple[int, ...]

    @staticmethod
    def of(model: ModelConfig, inner: int, vocabulary: int, taps: tuple[int, ...]) -> HeadConfig:
        """A head for a model."""
        return HeadConfig(
            model.hidden_size,
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.norm_eps,
            model.rotary,
            inner,
            vocabulary,
            model.vocab_size,
            taps,
        )

    @property
    def step_weights(self) -> int:
        """Weights that one proposal reads: all but ``fc``, which is read once for each row of a draft pass."""
        shapes = parameter_shapes(self)
        return sum(shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2 and name != "fc.weight")

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The taps as passes know them."""
        return tuple(tap_name(tap - 1) for tap in self.taps)


def parameter_shapes(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter and its shape, ``(rows, columns)`` or ``(width,)``."""
    hidden, queries, keys = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "fc.weight": (hidden, len(config.taps) * hidden),
        LAYER + "input_layernorm.weight": (hidden,),
        LAYER + "hidden_norm.weight": (hidden,),
        LAYER + "self_attn.q_proj.weight": (queries, 2 * hidden),
        LAYER + "self_attn.k_proj.weight": (keys, 2 * hidden),
        LAYER + "self_attn.v_proj.weight": (keys, 2 * hidden),
        LAYER + "self_attn.o_proj.weight": (hidden, queries),
        LAYER + "post_attention_layernorm.weight": (hidden,),
        LAYER + "mlp.gate_proj.weight": (config.inner, hidden),
        LAYER + "mlp.up_proj.weight": (config.inner, hidden),
        LAYER + "mlp.down_proj.weight": (hidden, config.inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.vocabulary, hidden),
    }


def program_parameters(parameters: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The parameters as :func:`build_head_program` names them: q, k and v as two matrices each, of the columns that
    read the embedding and of those that read the hidden state.
    """
    named = {}
    for name, value in parameters.items():
        if name in _projections():
            for side, columns in zip(_SIDES, np.split(value, 2, axis=1), strict=True):
                named[_side(name, side)] = np.ascontiguousarray(columns)
        else:
            named[name] = value
    return named


def build_head_program(config: HeadConfig) -> StepProgram:
    """The operators of a head's step: first ``FUSE`` of them, which read ``FEATURES``, then those of the layer.

    The layer's input is two normalised halves side by side; a product with both is the sum of the products with each.
    Embeddings come from :func:`build_embedding_program`, since the tokens that a head reads are more than it proposes.
    """

    def norm(name: str) -> Norm:
        return Norm(f"{name}.weight", config.norm_eps)

    embedded, state = (tuple(_side(name, side) for name in _projections()) for side in _SIDES)
    mlp = f"{LAYER}mlp."
    ops: list[Operator] = [
        Linear(FEATURES, ("fc.weight",), HIDDEN),
        Linear(EMBEDDED, embedded, "qkv", norm(LAYER + "input_layernorm")),
        Linear(HIDDEN, state, "qkv", norm(LAYER + "hidden_norm"), accumulate=True),
        Attention("qkv", "attention", 0, config.heads, config.kv_heads, config.head_dim, scale=config.head_dim**-0.5),
        Linear("attention", (LAYER + "self_attn.o_proj.weight",), HIDDEN, accumulate=True),
        GatedLinear(
            HIDDEN,
            mlp + "gate_proj.weight",
            mlp + "up_proj.weight",
            "gated",
            norm(LAYER + "post_attention_layernorm"),
        ),
        Linear("gated", (mlp + "down_proj.weight",), HIDDEN, accumulate=True),
        LMHead(HIDDEN, "lm_head.weight", norm("norm")),
        Sample(),
    ]
    return _program(
        config,
        ops,
        {
            FEATURES: len(config.taps) * config.hidden_size,
            HIDDEN: config.hidden_size,
            EMBEDDED: config.hidden_size,
            "qkv": (config.heads + 2 * config.kv_heads) * config.head_dim,
            "attention": config.heads * config.head_dim,
            "gated": config.inner,
        },
        config.vocabulary,
    )


def build_embedding_program(config: HeadConfig) -> StepProgram:
    """The model's embedding alone, under the model's name for it."""
    return _program(config, [Embed(EMBEDDING, EMBEDDED)], {EMBEDDED: config.hidden_size}, config.model_vocabulary)


def _program(config: HeadConfig, ops: Sequence[Operator], buffers: dict[str, int], vocabulary: int) -> StepProgram:
    return StepProgram(
        ops=tuple(ops),
        buffers=buffers,
        layers=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=vocabulary,
        inv_freq=config.rotary.inv_freq,
        rotary_scale=config.rotary.scale,
    )


def _projections() -> tuple[str, ...]:
    return tuple(f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv")


def _side(name: str, side: str) -> str:
    return name.replace("_proj.weight", f"_proj.{side}.weight")
