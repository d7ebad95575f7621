"""The head: EAGLE-3's layer, its parameters by their public names, and its arithmetic.

Hidden states of three depths come down to one (``fc``). A decoder layer reads it beside the embedding of the token
that follows; its output says, through a norm and an output head of fewer tokens, which token comes after that one. The
same output stands in for the hidden state when the head goes on by itself, token after token.

``d2t`` gives of each of the head's tokens how far its id in the model's vocabulary is ahead of its own, ``t2d`` says
of each of the model's tokens whether the head knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F

from speq.models.head import LAYER, HeadConfig, parameter_shapes
from speq.training.target import Rotary, Target, Tensor, rms_norm, rotate

Parameters: TypeAlias = Mapping[str, Tensor]
"""The head's weights by their public names, without ``d2t`` and ``t2d``."""

SMALL = 0.02
"""Spread of weights that have nothing better to begin with."""


def initial_parameters(config: HeadConfig, target: Target, known: Tensor, seed: int) -> dict[str, Tensor]:
    """Where training begins: the model's own output head and norm over its highest tap, and a layer that adds nothing.

    Args:
        known: ids ``[vocabulary]`` of the tokens that the head can propose, ascending.
        seed: of the other weights.

    Returns:
        Float32 tensors on the target's device.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * SMALL
        parameters[name] = value.to(target.device)
    hidden = config.hidden_size
    parameters["fc.weight"][:, -hidden:] += torch.eye(hidden, device=target.device)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        parameters[LAYER + name].zero_()
    parameters["norm.weight"].copy_(target.final_norm)
    parameters["lm_head.weight"].copy_(target.head("exact")[known])
    return parameters


class Head:
    """A head's arithmetic over some parameters. Shapes: ``[rows, length, ...]``, heads before length in attention."""

    def __init__(self, config: HeadConfig, parameters: Parameters, embedding: Tensor) -> None:
        """Bind it.

        Args:
            config: its sizes.
            parameters: see :func:`parameter_shapes`.
            embedding: the model's ``[model_vocabulary, hidden]``.
        """
        self.config, self.parameters, self.embedding = config, parameters, embedding
        self._rotary = Rotary(config.rotary, embedding.device)

    def fuse(self, features: Tensor) -> Tensor:
        """Hidden states of the model at the taps, ``[..., taps * hidden]``, as one ``[..., hidden]``."""
        return F.linear(features, self.parameters["fc.weight"])

    def project(self, tokens: Tensor, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[rows, heads, length, head_dim]`` of tokens beside the hidden states before them.

        Args:
            tokens: ``[rows, length]``.
            hidden: ``[rows, length, hidden]``.
            positions: ``[length]`` or ``[rows, length]``, any that ascend by one along a text.
        """
        embedded = self._norm("input_layernorm", F.embedding(tokens, self.embedding).to(hidden.dtype))
        x = torch.cat([embedded, self._norm("hidden_norm", hidden)], -1)
        angles = self._rotary.angles(positions)
        q, k, v = (
            F.linear(x, self._weight(f"self_attn.{part}_proj"))
            .unflatten(-1, (-1, self.config.head_dim))
            .transpose(1, 2)
            for part in "qkv"
        )
        return rotate(q, angles), rotate(k, angles), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention ``[rows, heads, length, head_dim]``; ``mask`` says which keys a query sees."""
        group = self.config.heads // self.config.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output ``[rows, length, hidden]``, which is the hidden state of the next step."""
        x = hidden + F.linear(attended.transpose(1, 2).flatten(2), self._weight("self_attn.o_proj"))
        y = self._norm("post_attention_layernorm", x)
        inner = F.silu(F.linear(y, self._weight("mlp.gate_proj"))) * F.linear(y, self._weight("mlp.up_proj"))
        return x + F.linear(inner, self._weight("mlp.down_proj"))

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the head's own tokens, ``[..., vocabulary]``."""
        normed = rms_norm(hidden, self.parameters["norm.weight"], self.config.norm_eps)
        return F.linear(normed, self.parameters["lm_head.weight"])

    def _weight(self, name: str) -> Tensor:
        return self.parameters[f"{LAYER}{name}.weight"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self._weight(name), self.config.norm_eps)
