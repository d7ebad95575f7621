"""The operators of one decoding step, and the list of them that describes a model.

A model is a tuple of these records over named buffers and named weights. A backend binds the list to memory once and
replays it: :mod:`speq.backends.reference.step` in NumPy defines what is right, :mod:`speq.backends.cpu` runs it in one
native call. Buffers are float32 matrices ``[tokens, width]``; weights are split 16-bit matrices ``[rows, columns]`` or
float32 vectors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Norm:
    """RMSNorm over the last axis: ``x / sqrt(mean(x * x) + eps) * weight``."""

    weight: str
    eps: float


class Operator:
    """What every operator tells of itself, so that who walks a program need not know its kinds."""

    norm: Norm | None = None
    """The norm that the input of its products goes through; ``None`` for none."""

    @property
    def products(self) -> tuple[str, ...]:
        """The weight matrices that ``norm(x)`` is multiplied with; all share that input."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Buffers that it reads, the input of its products first."""
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        """Buffers that it writes or adds to; an operator that writes none changes nothing of what comes after."""
        return ()


@dataclass(frozen=True)
class Embed(Operator):
    """``out[t] = table[token[t]]``: always the exact 16-bit rows."""

    table: str
    out: str

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.out,)


@dataclass(frozen=True)
class Linear(Operator):
    """``out = norm(x) @ concat(weights).T + concat(biases)``; added to ``out`` instead of stored when ``accumulate``.

    Several weights that share their input (q, k and v) are one operator: their results stand side by side in ``out``.
    """

    x: str
    weights: tuple[str, ...]
    out: str
    norm: Norm | None = None
    biases: tuple[str | None, ...] = ()
    accumulate: bool = False

    @property
    def products(self) -> tuple[str, ...]:
        return self.weights

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x, self.out) if self.accumulate else (self.x,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.out,)


@dataclass(frozen=True)
class GatedLinear(Operator):
    """SwiGLU: ``out = silu(norm(x) @ gate.T + gate_bias) * (norm(x) @ up.T + up_bias)``."""

    x: str
    gate: str
    up: str
    out: str
    norm: Norm | None = None
    gate_bias: str | None = None
    up_bias: str | None = None

    @property
    def products(self) -> tuple[str, ...]:
        return self.gate, self.up

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.out,)


@dataclass(frozen=True)
class Attention(Operator):
    """Causal grouped-query attention with rotary positions.

    ``qkv`` holds ``heads`` query, ``kv_heads`` key and ``kv_heads`` value vectors of ``head_dim`` each. Queries and
    keys of each head are normalised, where there is a norm, and rotated (halves convention); keys and values go to the
    KV cache; then each row attends to its sequence up to itself. ``window`` limits it to the last positions.
    """

    qkv: str
    out: str
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.qkv,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.out,)


@dataclass(frozen=True)
class Tap(Operator):
    """Keeps a copy of ``x`` under the name ``name`` in passes that ask for it."""

    x: str
    name: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True)
class LMHead(Operator):
    """The output head: ``logits = norm(x) @ weight.T`` for the rows that the caller wants."""

    x: str
    weight: str
    norm: Norm | None = None

    @property
    def products(self) -> tuple[str, ...]:
        return (self.weight,)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True)
class Sample(Operator):
    """Draws tokens from the logits of the head, where the caller says how."""


@dataclass(frozen=True)
class StepProgram:
    """One decoding step of a model.

    Attributes:
        ops: operators in order.
        buffers: width of each named float32 buffer.
        layers, kv_heads, head_dim: shape of the KV cache.
        vocab_size: columns of the logits.
        inv_freq: rotary inverse frequencies, ``head_dim / 2`` of them (after RoPE scaling).
        rotary_scale: factor on cos and sin (YaRN's attention factor), 1.0 otherwise.
    """

    ops: tuple[Operator, ...]
    buffers: dict[str, int]
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    inv_freq: tuple[float, ...]
    rotary_scale: float = 1.0
