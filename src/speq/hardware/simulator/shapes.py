"""The shape of a decoder-only transformer, and the products that a pass over it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from speq.hardware.simulator.schema import Name, Size, Source, Table


class Shape(Table):
    """Published sizes of a model; no weights are needed.

    ``gated`` says whether the MLP has three matrices (SwiGLU) or two; ``mlp`` of them have ``intermediate`` channels.
    """

    name: Name
    title: str
    source: Source
    hidden: Size
    intermediate: Size
    layers: Size
    heads: Size
    kv_heads: Size
    head_size: Size
    vocabulary: Size
    gated: bool

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"has {self.heads} heads, which {self.kv_heads} kv_heads do not divide")
        return self

    def linears(self) -> Iterator[Linear]:
        """The matrix products of one decoder block, in order."""
        query, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        yield Linear("q", self.hidden, query)
        yield Linear("k", self.hidden, kv)
        yield Linear("v", self.hidden, kv)
        yield Linear("o", query, self.hidden)
        if self.gated:
            yield Linear("gate", self.hidden, self.intermediate)
        yield Linear("up", self.hidden, self.intermediate)
        yield Linear("down", self.intermediate, self.hidden)

    def head(self) -> Linear:
        """The output head; it computes only the rows whose logits are wanted."""
        return Linear("head", self.hidden, self.vocabulary)

    def parameters(self) -> int:
        """Weights of all matrix products; embeddings, norms and biases are left out."""
        return self.layers * sum(one.inputs * one.outputs for one in self.linears()) + self.hidden * self.vocabulary


@dataclass(frozen=True)
class Linear:
    """A product with weights ``[outputs, inputs]``."""

    name: str
    inputs: int
    outputs: int


Tokens: TypeAlias = Annotated[int, Field(gt=0, le=1 << 16)]
"""How long a prompt or a text is."""


class Task(Table):
    """What is generated: lengths, and how well drafts do if no trace says so."""

    name: Name
    title: str
    source: Source
    prompt_tokens: Tokens
    new_tokens: Tokens
    kind: Literal["mathematics", "code", "conversation"]
