"""The simulator's description of a transformer against the one that the models run by."""

from __future__ import annotations

import pytest

from speq.hardware.simulator.shapes import Shape
from speq.models.config import model_config
from speq.models.decoder import EMBEDDING, weight_shapes

SIZES = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
}


@pytest.mark.parametrize("change", [{}, {"num_key_value_heads": 4}, {"num_hidden_layers": 1, "vocab_size": 7}])
def test_matrix_products_are_those_of_the_decoder(change: dict[str, int]) -> None:
    sizes = SIZES | change
    shape = Shape(
        name="a-model",
        title="A model",
        source="sizes of this test",
        hidden=sizes["hidden_size"],
        intermediate=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_size=sizes["head_dim"],
        vocabulary=sizes["vocab_size"],
        gated=True,
    )
    found = weight_shapes(model_config(sizes))
    matrices = {name: size for name, size in found.items() if len(size) == 2 and name != EMBEDDING}
    products = {
        f"model.layers.{layer}.{'mlp' if one.name in ('gate', 'up', 'down') else 'self_attn'}.{one.name}_proj.weight": (
            one.outputs,
            one.inputs,
        )
        for layer in range(shape.layers)
        for one in shape.linears()
    }
    assert matrices == products | {"lm_head.weight": (shape.head().outputs, shape.head().inputs)}
    assert shape.parameters() == sum(rows * columns for rows, columns in matrices.values())
