"""What operators tell of themselves, against what the reference backend does with every buffer."""

from __future__ import annotations

import numpy as np
import pytest

from speq.backends.reference.step import ReferenceStep
from speq.formats import Spec, encode, from_float32
from speq.graph.ops import Operator
from speq.graph.step import chain
from speq.models.config import model_config
from speq.models.decoder import build_program, weight_shapes
from speq.runtime.kv import KVPool

CONFIG = model_config(
    {
        "model_type": "qwen3",
        "vocab_size": 40,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
        "max_position_embeddings": 64,
    }
)
PROGRAM = build_program(CONFIG)
TOKENS = np.array([3, 1, 4], np.int32)


def weights(changed=()):
    """Random weights; those named are others."""
    made = {}
    for number, (name, shape) in enumerate(weight_shapes(CONFIG).items()):
        rng = np.random.default_rng(number + 1000 * (name in changed))
        values = rng.standard_normal(shape).astype(np.float32)
        made[name] = encode(from_float32(values, "bf16"), Spec.default()) if values.ndim == 2 else values
    return made


def results(index, changed=(), fill=lambda name, buffer: None):
    """Buffers before and after one operator, and the logits after it."""
    step = ReferenceStep(PROGRAM, weights(changed), KVPool(1, 2, 16, context=64), len(TOKENS))
    for number, name in enumerate(PROGRAM.buffers):
        step.buffer(name)[:] = np.random.default_rng(number).standard_normal(step.buffer(name).shape)
        fill(name, step.buffer(name))
    before = {name: step.buffer(name).copy() for name in PROGRAM.buffers}
    step.run_one(index, chain(TOKENS, logits="all"))
    return before, {name: step.buffer(name).copy() for name in PROGRAM.buffers}, step.logits()


@pytest.mark.parametrize("index", range(len(PROGRAM.ops)), ids=lambda i: f"{i}-{type(PROGRAM.ops[i]).__name__}")
def test_an_operator_tells_what_it_reads_and_writes(index: int) -> None:
    op: Operator = PROGRAM.ops[index]
    before, after, logits = results(index)
    assert {name for name in after if not np.array_equal(before[name], after[name])} == set(op.writes)

    def differs(other):
        return not np.array_equal(other[2], logits) or any(
            not np.array_equal(other[1][name], after[name]) for name in op.writes
        )

    for name in PROGRAM.buffers:
        other = results(index, fill=lambda n, buffer, name=name: buffer.__iadd__(1) if n == name else None)
        if op.writes or op.products:
            assert differs(other) == (name in op.reads)
    for matrix in weight_shapes(CONFIG):
        if len(weight_shapes(CONFIG)[matrix]) == 2 and op.products:
            assert differs(results(index, changed=[matrix])) == (matrix in op.products)


def test_a_backend_refuses_an_operator_that_it_does_not_know() -> None:
    from dataclasses import replace

    from speq.backends.cpu import NativeStep

    class Unknown(Operator):
        pass

    program = replace(PROGRAM, ops=(PROGRAM.ops[0], Unknown()))
    with pytest.raises(TypeError, match="Unknown"):
        NativeStep(program, weights(), KVPool(1, 2, 16, context=64), 3, threads=1)
    with pytest.raises(TypeError, match="Unknown"):
        ReferenceStep(program, weights(), KVPool(1, 2, 16, context=64), 3).run(chain(TOKENS))
