"""The cost of one pass over a model: prefill, plain step, draft or verify, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from speq.errors import SpeqError
from speq.hardware.simulator.config import Accelerator, Pass
from speq.hardware.simulator.cost import Cost, Layer
from speq.hardware.simulator.machine import GATE_OPERATIONS, NORM_OPERATIONS, SOFTMAX_OPERATIONS, Machine
from speq.hardware.simulator.shapes import Linear, Shape

Kind: TypeAlias = Literal["prefill", "step", "draft", "verify"]


@dataclass(frozen=True)
class PassSpec:
    """A pass over ``tokens`` new tokens after ``context`` in the cache; ``logits`` rows, at least 1, go to the head."""

    kind: Kind
    tokens: int
    context: int
    logits: int


class Simulator:
    """Costs of passes of one model on one accelerator; what repeats is computed once.

    Raises:
        SpeqError: the array is too small for a mode.
    """

    def __init__(self, accelerator: Accelerator, shape: Shape) -> None:
        self.machine, self.shape = Machine(accelerator), shape
        self._fixed: dict[tuple[bool, int, int], list[Layer]] = {}
        self._fixed_cost: dict[tuple[bool, int, int], Cost] = {}
        self._attention: dict[tuple[bool, int, int], Cost] = {}

    def layers(self, spec: PassSpec) -> list[Layer]:
        """All layers of a pass; ``times`` says in how many decoder blocks one occurs."""
        fixed = self._fixed_layers(spec)
        attention = Layer("attention", self.shape.layers, self._attention_cost(spec))
        return [*fixed, attention]

    def cost(self, spec: PassSpec) -> Cost:
        """The sum over :meth:`layers`."""
        key = (spec.kind == "draft", spec.tokens, spec.logits)
        if key not in self._fixed_cost:
            self._fixed_cost[key] = _sum(self._fixed_layers(spec))
        total = Cost()
        total.add(self._fixed_cost[key])
        total.add(self._attention_cost(spec), self.shape.layers)
        return total

    def _pass(self, draft: bool) -> Pass:
        passes = self.machine.accelerator.passes
        if not draft:
            return passes.exact
        if passes.draft is None:
            raise SpeqError(f"{self.machine.accelerator.name} has no draft passes: it cannot replay speculative rounds")
        return passes.draft

    def _fixed_layers(self, spec: PassSpec) -> list[Layer]:
        """Everything that does not depend on the context."""
        draft = spec.kind == "draft"
        key = (draft, spec.tokens, spec.logits)
        if key not in self._fixed:
            one, shape, machine = self._pass(draft), self.shape, self.machine
            layers = [Layer("start", 1, machine.start())]
            for linear in shape.linears():
                layers += self._linear_layers(linear, spec.tokens, one)
            values = spec.tokens * (2 * shape.hidden * NORM_OPERATIONS + shape.intermediate * GATE_OPERATIONS)
            layers.append(Layer("norms and activation", shape.layers, machine.vector(values)))
            head = shape.head()
            layers.append(Layer("head", 1, machine.linear(spec.logits, head.inputs, head.outputs, one.head, one)))
            self._fixed[key] = layers
        return self._fixed[key]

    def _linear_layers(self, linear: Linear, tokens: int, one: Pass) -> list[Layer]:
        """One matrix of all blocks; those of the wide share are a layer of their own."""
        share = one.wide_share.value if one.wide_share else 0.0
        kinds = [(linear.name, 1 - share, one.linear)]
        if one.wide and share:
            kinds.append((f"{linear.name} (wide)", share, one.wide))
        return [
            Layer(name, part * self.shape.layers, self.machine.linear(tokens, linear.inputs, linear.outputs, how, one))
            for name, part, how in kinds
            if part
        ]

    def _attention_cost(self, spec: PassSpec) -> Cost:
        """Scores, softmax and values of one block."""
        key = (spec.kind == "draft", spec.tokens, spec.context)
        if key not in self._attention:
            shape, one = self.shape, self._pass(key[0])
            sharing = shape.heads // shape.kv_heads
            cost = self.machine.attention(spec.tokens, spec.context, shape.kv_heads, sharing, shape.head_size, one)
            scores = spec.tokens * shape.heads * (spec.context + spec.tokens)
            cost.add(self.machine.vector(scores * SOFTMAX_OPERATIONS))
            self._attention[key] = cost
        return self._attention[key]


def _sum(layers: list[Layer]) -> Cost:
    total = Cost()
    for layer in layers:
        total.add(layer.cost, layer.times)
    return total
