"""A head that proposes tokens, described once: its sizes, its parameters by name, its operators.

A decoder layer reads what the model knew at a token beside the embedding of the token that follows; an output head says
which token comes after that one. The layer's output stands in for the hidden state when the head goes on by itself. Two
structures exist. EAGLE-3 brings hidden states of several depths down to one (``fc``), which the layer reads beside the
embedding, each with a norm of its own, and has an output head of fewer tokens. EAGLE-1, from which EAGLE-2 differs in
its trees alone, brings the embedding and the model's last hidden state, behind the model's norm, down to one (``fc``),
which the layer reads, and uses the model's own output head.

Names are those of EAGLE-3 heads in the speculators library; :mod:`speq.models.head_files` brings others to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, Operator, Sample, StepProgram
from speq.models.config import ModelConfig
from speq.models.decoder import EMBEDDING, tap_name
from speq.models.rope import RotaryFrequencies

Structure: TypeAlias = Literal["eagle1", "eagle3"]

LAYER = "layers.0."
OUTPUT_HEAD = "lm_head.weight"
OWN_EMBEDDING = "embed_tokens.weight"
FEATURES, EMBEDDED, STATE, HIDDEN = "features", "embedded", "state", "hidden"
"""Buffers that the caller fills or reads: hidden states at the taps, side by side; embeddings of the tokens; of an
EAGLE-1 head the states that the layer reads; the states that it leaves, which an EAGLE-3 head reads there, too.
"""

_USUAL_TAPS = 3  # of EAGLE-3
_SIDES = ("embedded", "hidden")  # the columns of a matrix that read the embedding, and those that read the state


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a head.

    Attributes:
        hidden_size: that of the model.
        heads, kv_heads, head_dim, norm_eps, rotary: of its layer; those of the model where it was trained here.
        inner: width of the feed-forward part.
        vocabulary: tokens that the head can propose.
        model_vocabulary: tokens of the model.
        taps: after how many of the model's layers its residual stream is read; empty if the head does not say, which
            then reads the usual ones (:meth:`of_model`).
        structure: what it computes.
        extras: parameters beyond those that all heads of its structure have.
        window: last positions that its layer sees; ``None`` for all.
        adds_to_normed: whether the layer adds to the state behind ``hidden_norm``, not to the one before it.
        goes_on_normed: whether the state that stands for the next hidden state is the one behind ``norm``.
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
    structure: Structure = "eagle3"
    extras: frozenset[str] = frozenset()
    window: int | None = None
    adds_to_normed: bool = False
    goes_on_normed: bool = False

    @staticmethod
    def of(model: ModelConfig, inner: int, vocabulary: int, taps: tuple[int, ...]) -> HeadConfig:
        """A head for a model, as it is trained here."""
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
    def is_trained_here(self) -> bool:
        """Whether it is of the kind that :mod:`speq.training` trains and measures."""
        own = (self.structure, self.extras, self.window, self.adds_to_normed, self.goes_on_normed)
        return own == ("eagle3", frozenset(), None, False, False)

    @property
    def depths(self) -> int:
        """Hidden states that it reads at a token."""
        return 1 if self.structure == "eagle1" else len(self.taps) or _USUAL_TAPS

    def taps_in(self, layers: int) -> tuple[int, ...]:
        """The taps in a model of so many layers, which may have too few for them."""
        return self.taps or ((layers,) if self.structure == "eagle1" else (2, layers // 2, layers - 3))

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
    is_eagle3 = config.structure == "eagle3"
    read = 2 * hidden if is_eagle3 else hidden
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, config.depths * hidden if is_eagle3 else 2 * hidden),
        **({LAYER + "input_layernorm.weight": (hidden,), LAYER + "hidden_norm.weight": (hidden,)} if is_eagle3 else {}),
        LAYER + "self_attn.q_proj.weight": (queries, read),
        LAYER + "self_attn.k_proj.weight": (keys, read),
        LAYER + "self_attn.v_proj.weight": (keys, read),
        LAYER + "self_attn.o_proj.weight": (hidden, queries),
        LAYER + "post_attention_layernorm.weight": (hidden,),
        LAYER + "mlp.gate_proj.weight": (config.inner, hidden),
        LAYER + "mlp.up_proj.weight": (config.inner, hidden),
        LAYER + "mlp.down_proj.weight": (hidden, config.inner),
        **({"norm.weight": (hidden,), OUTPUT_HEAD: (config.vocabulary, hidden)} if is_eagle3 else {}),
    }
    return shapes | {name: shape for name, shape in _extra_shapes(config).items() if name in config.extras}


def known_extras(config: HeadConfig) -> frozenset[str]:
    """Parameters that heads of its structure may have."""
    return frozenset(_extra_shapes(config))


def _extra_shapes(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    hidden, queries, keys = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        OWN_EMBEDDING: (config.model_vocabulary, hidden),
        "fc.bias": (hidden,),
        LAYER + "self_attn.q_proj.bias": (queries,),
        LAYER + "self_attn.k_proj.bias": (keys,),
        LAYER + "self_attn.v_proj.bias": (keys,),
        LAYER + "self_attn.o_proj.bias": (hidden,),
        **{f"{LAYER}self_attn.{part}_norm.weight": (config.head_dim,) for part in "qk"},
    }
    if config.structure == "eagle3":
        shapes["input_norm.weight"] = (config.depths * hidden,)
        return shapes | {f"fc_norm.{depth}.weight": (hidden,) for depth in range(config.depths)}
    norms = ("embedding_layernorm.weight", LAYER + "input_layernorm.weight", "pre_lm_head_layernorm.weight")
    return shapes | dict.fromkeys(norms, (hidden,)) | {OUTPUT_HEAD: (config.vocabulary, hidden)}


def program_parameters(
    config: HeadConfig, parameters: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The parameters as :func:`build_head_program` names them: matrices that read the embedding and the state side by
    side as two each, of the columns that read the one and of those that read the other.
    """
    named = {}
    for name, value in parameters.items():
        if name in _sided(config):
            for side, columns in zip(_SIDES, np.split(value, 2, axis=1), strict=True):
                named[_side(name, side)] = np.ascontiguousarray(columns)
        else:
            named[name] = value
    return named


@dataclass(frozen=True)
class HeadProgram:
    """The operators of a head's step and how they are fed.

    Attributes:
        program: first the operators that make one state of what is in ``FEATURES``, if there are any, then those of the
            layer.
        fuse: how many the former are.
        state: buffer of the states that the layer reads.
    """

    program: StepProgram
    fuse: int
    state: str


def build_head_program(config: HeadConfig) -> HeadProgram:
    """The operators of a head's step.

    A product with two halves side by side is the sum of the products with each. Embeddings come from
    :func:`build_embedding_program`, since the tokens that a head reads are more than it proposes. What only some heads
    do between operators is left to the caller: ``fc_norm``, ``adds_to_normed`` and ``goes_on_normed``.
    """
    is_eagle3 = config.structure == "eagle3"
    before, entry = _eagle3_entry(config) if is_eagle3 else ([], _eagle1_entry(config))
    attention, mlp = f"{LAYER}self_attn.", f"{LAYER}mlp."
    ops: list[Operator] = [
        *before,
        *entry,
        Attention(
            "qkv",
            "attention",
            0,
            config.heads,
            config.kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            window=config.window,
            q_norm=_norm(config, attention + "q_norm"),
            k_norm=_norm(config, attention + "k_norm"),
        ),
        Linear("attention", (attention + "o_proj.weight",), HIDDEN, None, (_bias(config, "o"),), accumulate=True),
        GatedLinear(
            HIDDEN,
            mlp + "gate_proj.weight",
            mlp + "up_proj.weight",
            "gated",
            _norm(config, LAYER + "post_attention_layernorm"),
        ),
        Linear("gated", (mlp + "down_proj.weight",), HIDDEN, accumulate=True),
        LMHead(HIDDEN, OUTPUT_HEAD, _norm(config, "norm" if is_eagle3 else "pre_lm_head_layernorm")),
        Sample(),
    ]
    buffers = {
        HIDDEN: config.hidden_size,
        EMBEDDED: config.hidden_size,
        "qkv": (config.heads + 2 * config.kv_heads) * config.head_dim,
        "attention": config.heads * config.head_dim,
        "gated": config.inner,
        **({FEATURES: config.depths * config.hidden_size} if is_eagle3 else {STATE: config.hidden_size}),
    }
    return HeadProgram(_program(config, ops, buffers, config.vocabulary), len(before), HIDDEN if is_eagle3 else STATE)


def build_embedding_program(config: HeadConfig) -> StepProgram:
    """The embedding alone, the head's own or the model's under its name there."""
    table = OWN_EMBEDDING if OWN_EMBEDDING in config.extras else EMBEDDING
    return _program(config, [Embed(table, EMBEDDED)], {EMBEDDED: config.hidden_size}, config.model_vocabulary)


def _eagle3_entry(config: HeadConfig) -> tuple[list[Operator], list[Operator]]:
    """What makes one state of several, and what the layer reads."""
    embedded, state = (tuple(_side(name, side) for name in _projections()) for side in _SIDES)
    hidden_norm = None if config.adds_to_normed else _norm(config, LAYER + "hidden_norm")
    return [Linear(FEATURES, ("fc.weight",), HIDDEN, _norm(config, "input_norm"), (_bias(config, "fc"),))], [
        Linear(EMBEDDED, embedded, "qkv", _norm(config, LAYER + "input_layernorm"), _qkv_biases(config)),
        Linear(HIDDEN, state, "qkv", hidden_norm, accumulate=True),
    ]


def _eagle1_entry(config: HeadConfig) -> list[Operator]:
    embedded, state = (_side("fc.weight", side) for side in _SIDES)
    return [
        Linear(STATE, (state,), HIDDEN, None, (_bias(config, "fc"),)),
        Linear(EMBEDDED, (embedded,), HIDDEN, _norm(config, "embedding_layernorm"), accumulate=True),
        Linear(HIDDEN, _projections(), "qkv", _norm(config, LAYER + "input_layernorm"), _qkv_biases(config)),
    ]


def _norm(config: HeadConfig, name: str) -> Norm | None:
    """A norm, if the head has it."""
    return Norm(f"{name}.weight", config.norm_eps) if f"{name}.weight" in parameter_shapes(config) else None


def _bias(config: HeadConfig, part: str) -> str | None:
    name = "fc.bias" if part == "fc" else f"{LAYER}self_attn.{part}_proj.bias"
    return name if name in config.extras else None


def _qkv_biases(config: HeadConfig) -> tuple[str | None, ...]:
    return tuple(_bias(config, part) for part in "qkv")


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


def _sided(config: HeadConfig) -> tuple[str, ...]:
    """Matrices that read the embedding and the state side by side."""
    return _projections() if config.structure == "eagle3" else ("fc.weight",)


def _side(name: str, side: str) -> str:
    return f"{name.removesuffix('weight')}{side}.weight"
