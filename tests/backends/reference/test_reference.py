"""The reference operators against torch, and the reference step's own promises."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speq.backends.reference import functional as F
from speq.backends.reference.step import ReferenceStep
from speq.formats import Spec, encode, from_float32, to_float32
from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, StepProgram
from speq.graph.step import chain
from speq.limits import PAGE


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=2e-5, atol=2e-5)


def test_rms_norm(rng):
    x, weight = floats(rng, 5, 48), floats(rng, 48)
    assert_close(
        F.rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(torch.tensor(x), (48,), torch.tensor(weight), 1e-5)
    )


def test_linear(rng):
    x, weight = floats(rng, 5, 48), floats(rng, 33, 48)
    assert_close(F.linear(x, weight), torch.nn.functional.linear(torch.tensor(x), torch.tensor(weight)))


def test_silu(rng):
    x = np.concatenate([floats(rng, 100), np.array([-1000, 1000, 0], dtype=np.float32)])
    assert_close(F.silu(x), torch.nn.functional.silu(torch.tensor(x)))


def test_rotate_is_a_complex_rotation(rng):
    x, frequencies = floats(rng, 5, 3, 8), floats(rng, 4)
    turns = np.exp(1j * np.outer(np.arange(100, 105), frequencies.astype(np.float64)))[:, None, :]
    turned = (x[..., :4] + 1j * x[..., 4:]) * turns * 1.5
    assert_close(
        F.rotate(x, np.arange(100, 105), frequencies, 1.5), np.concatenate([turned.real, turned.imag], axis=-1)
    )


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("start", [0, 9])
def test_attention(rng, window, start):
    positions = start + 6
    q = floats(rng, 6, 4, 8)
    keys, values = (floats(rng, 2, positions, 8).astype(np.float16) for _ in range(2))
    query, key = np.arange(start, positions)[:, None], np.arange(positions)
    mask = (key <= query) & (True if window is None else key > query - window)
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).transpose(0, 1),
        torch.tensor(keys).float().repeat_interleave(2, dim=0),
        torch.tensor(values).float().repeat_interleave(2, dim=0),
        attn_mask=torch.tensor(mask),
        scale=0.3,
    ).transpose(0, 1)
    for row, seen in enumerate(mask):
        assert_close(F.attention(q[row], keys[:, seen], values[:, seen], 0.3), expected[row])


def test_no_operator_depends_on_the_number_of_tokens(rng):
    x, weight, norm = floats(rng, 16, 100), floats(rng, 300, 100), floats(rng, 100)
    q = floats(rng, 16, 4, 32)
    frequencies = floats(rng, 16)
    for token in range(16):
        one = slice(token, token + 1)
        assert np.array_equal(F.linear(x, weight)[one], F.linear(x[one], weight))
        assert np.array_equal(F.rms_norm(x, norm, 1e-6)[one], F.rms_norm(x[one], norm, 1e-6))
        assert np.array_equal(F.silu(x)[one], F.silu(x[one]))
        positions = np.arange(5, 21)
        assert np.array_equal(F.rotate(q, positions, frequencies)[one], F.rotate(q[one], positions[one], frequencies))


def one_layer(rng):
    """A program that uses every operator and option, its dense weights and a cache."""
    weights = {
        "table": floats(rng, 10, 8),
        "q": floats(rng, 8, 8),
        "k": floats(rng, 4, 8),
        "v": floats(rng, 4, 8),
        "v bias": floats(rng, 4),
        "o": floats(rng, 8, 8),
        "gate": floats(rng, 6, 8),
        "up": floats(rng, 6, 8),
        "down": floats(rng, 8, 6),
        "gate bias": floats(rng, 6),
        "up bias": floats(rng, 6),
        "wide": floats(rng, 8),
        "narrow": floats(rng, 4),
        "head": floats(rng, 10, 8),
    }
    norm, head_norm = Norm("wide", 1e-5), Norm("narrow", 1e-5)
    program = StepProgram(
        ops=(
            Embed("table", "hidden"),
            Linear("hidden", ("q", "k", "v"), "qkv", norm=norm, biases=(None, None, "v bias")),
            Attention("qkv", "attention", 0, 2, 1, 4, scale=0.5, q_norm=head_norm, k_norm=head_norm),
            Linear("attention", ("o",), "hidden", accumulate=True),
            GatedLinear("hidden", "gate", "up", "gated", norm=norm, gate_bias="gate bias", up_bias="up bias"),
            Linear("gated", ("down",), "hidden"),
            LMHead("hidden", "head", norm),
        ),
        buffers={"hidden": 8, "qkv": 16, "attention": 8, "gated": 6},
        layers=1,
        kv_heads=1,
        head_dim=4,
        vocab_size=10,
        inv_freq=(1.0, 0.25),
    )
    cache = SimpleNamespace(
        keys=np.zeros((2, 1, 1, PAGE, 4), np.float16), values=np.zeros((2, 1, 1, PAGE, 4), np.float16)
    )
    return program, weights, cache


def test_a_step_is_its_operators_in_order(rng):
    program, w, cache = one_layer(rng)
    tokens = np.array([3, 1, 4, 1], dtype=np.int32)
    step = ReferenceStep(program, w, cache, 8)
    step.run(chain(tokens, logits="all"))

    hidden = w["table"][tokens]
    x = F.rms_norm(hidden, w["wide"], 1e-5)
    frequencies = np.array(program.inv_freq, np.float32)
    q = F.rotate(F.rms_norm((x @ w["q"].T).reshape(4, 2, 4), w["narrow"], 1e-5), np.arange(4), frequencies)
    k = F.rotate(F.rms_norm((x @ w["k"].T).reshape(4, 1, 4), w["narrow"], 1e-5), np.arange(4), frequencies)
    v = (x @ w["v"].T + w["v bias"]).reshape(4, 1, 4)
    keys, values = (a.transpose(1, 0, 2).astype(np.float16) for a in (k, v))
    np.testing.assert_allclose(cache.keys[0, 0, :, :4], keys, rtol=2e-3)
    np.testing.assert_allclose(cache.values[0, 0, :, :4], values, rtol=2e-3)
    attended = [F.attention(q[row], keys[:, : row + 1], values[:, : row + 1], 0.5).reshape(8) for row in range(4)]
    hidden = hidden + np.stack(attended) @ w["o"].T
    x = F.rms_norm(hidden, w["wide"], 1e-5)
    hidden = (F.silu(x @ w["gate"].T + w["gate bias"]) * (x @ w["up"].T + w["up bias"])) @ w["down"].T
    expected = F.rms_norm(hidden, w["wide"], 1e-5) @ w["head"].T
    np.testing.assert_allclose(step.logits(), expected, rtol=1e-2, atol=1e-2)


def test_values_beyond_float16_become_infinite_without_a_warning(rng):
    program, weights, cache = one_layer(rng)
    weights["v bias"] = np.full(4, 1e6, np.float32)
    with np.errstate(all="raise", invalid="ignore"):
        ReferenceStep(program, weights, cache, 8).run(chain(np.array([3])))
    assert np.isinf(cache.values[0, 0, 0, 0]).all()


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        ([], 0, "0 rows"),
        ([1] * 9, 0, "9 rows"),
        ([1], 2 * PAGE, "no such page"),
        ([1], -1, "does not fit its pages"),
        ([10], 0, "vocabulary of 10"),
        ([-1], 0, "vocabulary of 10"),
    ],
)
def test_misuse(rng, tokens, start, message):
    program, weights, cache = one_layer(rng)
    with pytest.raises(ValueError, match=message):
        ReferenceStep(program, weights, cache, 8).run(chain(np.array(tokens), start))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_only_bf16_matrices_meet_rounded_activations(rng, dtype):
    program, weights, cache = one_layer(rng)
    bits = from_float32(weights["down"], dtype)
    down = next(i for i, op in enumerate(program.ops) if isinstance(op, Linear) and op.weights == ("down",))
    step = ReferenceStep(program, {**weights, "down": encode(bits, Spec.default("nested", dtype, 32))}, cache, 4)
    x = torch.from_numpy(floats(rng, 3, 6))
    step.buffer("gated")[:3] = x
    step.run_one(down, chain(np.array([3, 1, 4])))
    rounded = x.bfloat16().float() if dtype == "bf16" else x
    assert_close(step.buffer("hidden")[:3], rounded @ torch.from_numpy(to_float32(bits, dtype)).T)
