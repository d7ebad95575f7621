"""The model that a head is trained for, in torch, at both levels that its weights contain.

The exact level has the checkpoint's own values, the draft level what the 4-bit codes stand for. :meth:`Target.read`
runs both over given text the way decoding does: the draft level works in rounds of a few tokens and sees exact keys
and values of everything before its round. :meth:`Target.step` runs one level token by token, over a cache.

The kernels of speq also round activations (to 8 bits at the draft level) and keep keys and values in FP16; here
activations have the type of the computation. What a head learns from does not change by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from speq.formats import SplitTensor, decode, draft_values, to_float32
from speq.models.config import ModelConfig
from speq.models.decoder import EMBEDDING, FINAL_NORM, HEAD
from speq.models.rope import RotaryFrequencies
from speq.models.tensors import fit

Tensor: TypeAlias = Any
"""A torch tensor; torch comes without the types that strict checks ask for."""

Level: TypeAlias = Literal["draft", "exact"]
LEVELS: tuple[Level, Level] = ("draft", "exact")

ROUND = 8
"""Tokens that the draft level writes before the exact level checks them, about."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer at one level; matrices that share an input stand below each other."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    inner_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True)
class Reading:
    """What both levels say about rows of text.

    Attributes:
        features: by level ``[rows, length, 3 * hidden]``, the residual stream at the three taps side by side.
        final: by level ``[rows, length, hidden]``, what the output head reads.
    """

    features: Mapping[Level, Tensor]
    final: Mapping[Level, Tensor]


class Cache:
    """Keys and values of several sequences: ``[layers, rows, kv_heads, length, head_dim]`` each."""

    def __init__(self, config: ModelConfig, rows: int, length: int, like: Tensor) -> None:
        shape = (config.layers, rows, config.kv_heads, length, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    @property
    def length(self) -> int:
        """Positions there is room for."""
        return int(self.keys.shape[3])

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return 2 * int(self.keys.numel() * self.keys.element_size())


def default_taps(layers: int) -> tuple[int, int, int]:
    """After how many layers the residual stream is tapped: low and middle as in EAGLE-3, and before the last layer.

    EAGLE-3 has the third from the end there; later is better (docs/heads.md), and what comes out of the last layer is
    out of reach for other engines that use such heads.
    """
    low = min(2, layers - 1)
    return low, max(layers // 2, low), layers - 1


class Target:
    """A model at both levels.

    Attributes:
        config: what it is made of.
        embedding: ``[vocabulary, hidden]``, exact at both levels, as in speq's passes.
        device: where it is.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, SplitTensor | NDArray[np.float32]], device: str
    ) -> None:
        """Decode a converted checkpoint.

        Args:
            config: the parsed ``config.json``.
            weights: split matrices and float32 vectors by their Hugging Face names.
            device: a torch device. Weights are BF16 on a GPU and float32 on the CPU.

        Raises:
            SpeqError: the weights are not those that the config calls for.
        """
        self.config = fit(config, {name: weight.shape for name, weight in weights.items()})
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self._weights = weights
        self.embedding = self._matrix(EMBEDDING, "exact")
        self._final_norm = self._vector(FINAL_NORM)
        self._layers = {level: [self._layer(i, level) for i in range(self.config.layers)] for level in LEVELS}
        head = EMBEDDING if self.config.tied_head else HEAD
        self._heads = {
            "exact": self.embedding if self.config.tied_head else self._matrix(head, "exact"),
            "draft": self._matrix(head, "draft"),
        }
        self._rotary = Rotary(self.config.rotary, self.device)
        del self._weights

    @property
    def final_norm(self) -> Tensor:
        """The weight of the norm before the output head."""
        return self._final_norm

    def head(self, level: Level) -> Tensor:
        """The output head ``[vocabulary, hidden]``."""
        return self._heads[level]

    def read(self, tokens: Tensor, taps: Sequence[int], offset: int = 0) -> Reading:
        """Run both levels over text.

        Args:
            tokens: ``[rows, length]``.
            taps: after how many layers the residual stream is tapped.
            offset: where rounds of the draft begin: at position p if ``(p + offset) % ROUND`` is 0.
        """
        with torch.no_grad():
            return self._read(tokens, taps, offset)

    def _read(self, tokens: Tensor, taps: Sequence[int], offset: int) -> Reading:
        length = tokens.shape[1]
        angles = self._rotary.angles(torch.arange(length, device=self.device))
        masks = {window: self._reading_masks(length, offset, window) for window in set(self.config.windows)}
        streams: dict[Level, Tensor] = dict.fromkeys(LEVELS, F.embedding(tokens, self.embedding))
        tapped: dict[Level, list[Tensor]] = {level: [] for level in LEVELS}
        for index in range(self.config.layers):
            for level in LEVELS:
                tapped[level] += [streams[level]] * list(taps).count(index)
            layers: dict[Level, Layer] = {level: self._layers[level][index] for level in LEVELS}
            qkv = {level: self._project(layers[level], streams[level], angles) for level in LEVELS}
            causal, rounds = masks[self.config.windows[index]]
            q, k, v = qkv["exact"]
            attended: dict[Level, Tensor] = {"exact": self._attend(q, k, v, causal)}
            both = [torch.cat([qkv["exact"][part], qkv["draft"][part]], 2) for part in (1, 2)]
            attended["draft"] = self._attend(qkv["draft"][0], both[0], both[1], rounds)
            streams = {level: self._finish(layers[level], streams[level], attended[level]) for level in LEVELS}
        for level in LEVELS:
            tapped[level] += [streams[level]] * list(taps).count(self.config.layers)
        return Reading(
            {level: torch.cat(tapped[level], -1) for level in LEVELS},
            {level: rms_norm(streams[level], self._final_norm, self.config.norm_eps) for level in LEVELS},
        )

    def step(
        self, level: Level, tokens: Tensor, positions: Tensor, cache: Cache, span: int, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """One token more of several sequences.

        Args:
            level: which weights.
            tokens: ``[rows]``.
            positions: ``[rows]``, where each token stands; its keys and values are put there.
            cache: holds everything before.
            span: positions of the cache that are looked at; more than any of ``positions``.
            taps: as for :meth:`read`.

        Returns:
            ``[rows, hidden]`` for the output head, and ``[rows, 3 * hidden]`` at the taps or None.
        """
        with torch.no_grad():
            return self._step(level, tokens, positions, cache, span, taps)

    def _step(
        self, level: Level, tokens: Tensor, positions: Tensor, cache: Cache, span: int, taps: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        rows = torch.arange(len(tokens), device=self.device)
        angles = self._rotary.angles(positions[:, None])
        x = F.embedding(tokens, self.embedding)[:, None]
        ahead = torch.arange(span, device=self.device) - positions[:, None]
        tapped: list[Tensor] = []
        for index, layer in enumerate(self._layers[level]):
            tapped += [x[:, 0]] * list(taps).count(index)
            q, k, v = self._project(layer, x, angles)
            keys, values = cache.keys[index], cache.values[index]
            keys[rows, :, positions], values[rows, :, positions] = k[:, :, 0], v[:, :, 0]
            window = self.config.windows[index]
            seen = ahead <= 0 if window is None else (ahead <= 0) & (ahead > -window)
            # The query heads that share a key-value head are its queries.
            grouped = q[:, :, 0].unflatten(1, (self.config.kv_heads, -1))
            attended = F.scaled_dot_product_attention(
                grouped, keys[:, :, :span], values[:, :, :span], attn_mask=seen[:, None, None]
            )
            x = self._finish(layer, x, attended.flatten(1, 2)[:, :, None])
        tapped += [x[:, 0]] * list(taps).count(self.config.layers)
        return rms_norm(x[:, 0], self._final_norm, self.config.norm_eps), torch.cat(tapped, -1) if taps else None

    def chosen(self, level: Level, final: Tensor) -> Tensor:
        """The likeliest tokens ``[rows, length]`` of what the output head reads, row by row to save memory."""
        with torch.no_grad():
            return torch.stack([F.linear(row, self._heads[level]).argmax(-1) for row in final])

    def _project(self, layer: Layer, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, ``[rows, heads, length, head_dim]``."""
        config = self.config
        y = F.linear(rms_norm(x, layer.input_norm, config.norm_eps), layer.qkv, layer.qkv_bias)
        y = y.unflatten(-1, (-1, config.head_dim))
        q, k, v = y.split([config.heads, config.kv_heads, config.kv_heads], dim=-2)
        if layer.q_norm is not None:
            q, k = rms_norm(q, layer.q_norm, config.norm_eps), rms_norm(k, layer.k_norm, config.norm_eps)
        return rotate(q.transpose(1, 2), angles), rotate(k.transpose(1, 2), angles), v.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        group = self.config.heads // self.config.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def _finish(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after the rest of a layer; ``attended`` is ``[rows, heads, length, head_dim]``."""
        x = x + F.linear(attended.transpose(1, 2).flatten(2), layer.output, layer.output_bias)
        both = F.linear(rms_norm(x, layer.inner_norm, self.config.norm_eps), layer.gate_up, layer.gate_up_bias)
        gate, up = both.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)

    def _reading_masks(self, length: int, offset: int, window: int | None) -> tuple[Tensor | None, Tensor]:
        """What each position sees: of the exact level's keys (None: everything before), and of both levels' keys side
        by side for a draft in rounds.
        """
        at = torch.arange(length, device=self.device)
        behind = at[:, None] - at
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        begin = torch.div(at + offset, ROUND, rounding_mode="floor") * ROUND - offset
        own = at >= begin[:, None]
        return (None if window is None else seen), torch.cat([seen & ~own, seen & own], 1)

    def _layer(self, index: int, level: Level) -> Layer:
        prefix, config = f"model.layers.{index}.", self.config
        attention = prefix + "self_attn."

        def stacked(names: Sequence[str]) -> Tensor:
            return torch.cat([self._matrix(name, level) for name in names])

        def biases(names: Sequence[str]) -> Tensor:
            return torch.cat([self._vector(name) for name in names])

        return Layer(
            input_norm=self._vector(prefix + "input_layernorm.weight"),
            qkv=stacked([f"{attention}{part}_proj.weight" for part in "qkv"]),
            qkv_bias=biases([f"{attention}{part}_proj.bias" for part in "qkv"]) if config.qkv_bias else None,
            q_norm=self._vector(attention + "q_norm.weight") if config.qk_norm else None,
            k_norm=self._vector(attention + "k_norm.weight") if config.qk_norm else None,
            output=self._matrix(attention + "o_proj.weight", level),
            output_bias=self._vector(attention + "o_proj.bias") if config.output_bias else None,
            inner_norm=self._vector(prefix + "post_attention_layernorm.weight"),
            gate_up=stacked([prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight"]),
            gate_up_bias=biases([f"{prefix}mlp.{part}_proj.bias" for part in ("gate", "up")])
            if config.mlp_bias
            else None,
            down=self._matrix(prefix + "mlp.down_proj.weight", level),
            down_bias=self._vector(prefix + "mlp.down_proj.bias") if config.mlp_bias else None,
        )

    def _vector(self, name: str) -> Tensor:
        vector = self._weights[name]
        assert isinstance(vector, np.ndarray)
        return torch.tensor(np.array(vector), device=self.device, dtype=self.dtype)

    def _matrix(self, name: str, level: Level) -> Tensor:
        matrix = self._weights[name]
        if isinstance(matrix, SplitTensor):
            values = draft_values(matrix) if level == "draft" else to_float32(decode(matrix), matrix.spec.dtype)
        else:
            values = matrix
        return torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(self.device, self.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, its mean in float32."""
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


class Rotary:
    """Angles of a rotary embedding on a device."""

    def __init__(self, rotary: RotaryFrequencies, device: Any) -> None:
        self._frequencies = torch.tensor(rotary.inv_freq, dtype=torch.float32, device=device)
        self._scale = rotary.scale

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 ``[..., head_dim / 2]`` for positions ``[...]``."""
        angles = positions[..., None].float() * self._frequencies
        return angles.cos() * self._scale, angles.sin() * self._scale


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of ``[rows, heads, length, head_dim]``; halves convention."""
    cos, sin = (part if part.ndim == 2 else part[:, None] for part in angles)
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
