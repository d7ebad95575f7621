"""A real model, SmolLM2-135M-Instruct, end to end: converted weights, tokenizer and logits against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from speq.conversion.locate import converted_model
from speq.models.tokenizer import Tokenizer
from speq.runtime.single import SingleSequence

pytestmark = pytest.mark.slow

TEXT = "The capital of Italy is Rome, and the capital of France is"


@pytest.fixture(scope="module")
def converted():
    from speq.checkpoint.store import load_converted
    from speq.errors import SpeqError

    try:
        return load_converted(converted_model("smollm2-135m-instruct", calibrate=False))
    except SpeqError as error:
        pytest.skip(f"the model cannot be had here: {error}")


@pytest.fixture(scope="module")
def weights(converted):
    """Everything as float32 arrays."""
    from speq.formats import decode, to_float32

    matrices = {name: to_float32(decode(tensor), tensor.spec.dtype) for name, tensor in converted.split.items()}
    return {**matrices, **converted.raw}


@pytest.fixture(scope="module")
def theirs(converted, weights):
    """Logits of transformers with the same weights, by the type that it computes in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**converted.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied
    ids = torch.tensor([Tokenizer(converted.path).encode(TEXT)])
    with torch.no_grad():
        return {dtype: model.to(dtype)(ids).logits[0].float().numpy() for dtype in (torch.float32, torch.bfloat16)}


def test_logits_equal_transformers(converted, weights, theirs):
    import torch

    engine = SingleSequence.of((converted.config, weights), backend="reference", context=64)
    logits = engine.forward(Tokenizer(converted.path).encode(TEXT), logits="all")
    expected = theirs[torch.float32]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert np.array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rounded_activations_cost_less_than_transformers_in_bf16(converted, theirs, backend):
    import torch

    tokenizer = Tokenizer(converted.path)
    engine = SingleSequence.of(converted, backend=backend, threads=2, context=64)
    logits = engine.forward(tokenizer.encode(TEXT), logits="all")
    truth = theirs[torch.float32]
    assert np.linalg.norm(logits - truth) < 0.5 * np.linalg.norm(theirs[torch.bfloat16] - truth)
    assert tokenizer.decode([int(logits[-1].argmax())]) == " Paris"


def test_text_and_chat_equal_transformers(converted):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(converted.path), Tokenizer(converted.path)
    for text in (TEXT, "  naïve café 日本語 🙂\n\n\tdef f(x):\n    return x1234567 + 1.5e-10 'll don't"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    assert ours.chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.decode(ours.eos_ids, skip_special=False).count("<|im_end|>") == 1
