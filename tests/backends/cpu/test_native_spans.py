"""Spans of several sequences and trees in one pass: every row has the bits that it has in a chain of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isas import DRAFTS_SEVERAL_ROWS_APART

from speq.backends.cpu import NativeStep, available_isas
from speq.backends.reference.step import ReferenceStep
from speq.formats import Spec, encode, from_float32
from speq.graph.step import Draw, Rows, SpanRows, chain, path
from speq.limits import PAGE
from speq.models.config import model_config
from speq.models.decoder import build_program, weight_shapes
from speq.runtime.kv import KVPool

CONTEXT = 3 * PAGE
VOCABULARY = 53
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": CONTEXT,
}
MODELS = {
    "llama": {"model_type": "llama"},
    "window": {"model_type": "mistral", "sliding_window": 9},
    "qwen3": {"model_type": "qwen3"},
}
ISAS = available_isas()
IDS = np.random.default_rng(3).integers(0, VOCABULARY, CONTEXT).astype(np.int32)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    config = model_config({**SIZES, **MODELS[request.param]})
    rng = np.random.default_rng(0)
    weights = {}
    for key, shape in weight_shapes(config).items():
        if len(shape) == 1:
            weights[key] = (rng.standard_normal(shape) * 0.2 + 1).astype(np.float32)
        else:  # large enough for attention to prefer some positions
            values = rng.standard_normal(shape) * 2 / shape[1] ** 0.5
            weights[key] = encode(from_float32(values.astype(np.float32), "bf16"), Spec.default("nested", "bf16", 64))
    return build_program(config), weights


def new_step(model, backend=NativeStep, sequences=1, **options):
    program, weights = model
    pool = KVPool(program.layers, program.kv_heads, program.head_dim, context=CONTEXT, sequences=sequences)
    options = {"threads": 2, **options} if backend is NativeStep else {}
    return backend(program, weights, pool, 256, **options)


def run(step, *args, **options):
    step.run(chain(*args, **{"logits": "all", **options}))
    return step.logits().copy()


def run_alone(step, tokens, start, *, isa, draft, parents=None):
    """Logits of a span without neighbours. Where BF16 dot products or tiles draft several rows, a row alone is drafted
    in another way and has a companion here.
    """
    if draft and isa in DRAFTS_SEVERAL_ROWS_APART and len(tokens) == 1:
        return run(step, np.repeat(tokens, 2), start, draft=True)[:1]
    return run(step, tokens, start, draft=draft, parents=parents)


@st.composite
def trees(draw):
    """Parents of 1 to 64 rows; every one stands before its child."""
    count = draw(st.integers(1, 64))
    deep = draw(st.booleans())  # otherwise trees of 64 rows would be shallow
    return [draw(st.integers(max(-1, row - 3) if deep else -1, row - 1)) for row in range(count)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("draft", [False, True], ids=["exact", "draft"])
@settings(max_examples=6, deadline=None)
@given(parents=trees(), start=st.sampled_from([0, 1, 7, 230, PAGE - 1, PAGE, PAGE + 20, 2 * PAGE - 3]), data=st.data())
def test_every_row_of_a_tree_has_the_bits_of_its_chain(model, isa, draft, parents, start, data):
    step = new_step(model, isa=isa)
    for first in range(0, start, 200):
        run(step, IDS[first : min(first + 200, start)], first)
    tokens = np.array(data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=64, max_size=64)), np.int32)
    tree = run_alone(step, tokens[: len(parents)], start, isa=isa, parents=parents, draft=draft)
    for row in range(len(parents)):
        alone = run_alone(step, tokens[path(parents, row)], start, isa=isa, draft=draft)
        assert np.array_equal(tree[row], alone[-1]), (row, parents)


@pytest.mark.parametrize("isa", ISAS)
def test_a_tree_that_sees_a_cousin_would_be_noticed(model, isa):
    """The comparison above is sharp: a row's bits change with any row that it sees."""
    step = new_step(model, isa=isa)
    run(step, IDS[:5], 0)
    tokens = IDS[50:54]
    cousins = run(step, tokens, 5, parents=[-1, -1, 0, 1])
    chained = run(step, tokens, 5, parents=[-1, 0, 1, 2])
    assert np.array_equal(cousins[0], chained[0])
    assert not any(np.array_equal(cousins[row], chained[row]) for row in (1, 2, 3))


def test_the_reference_agrees_about_trees(model):
    parents = [-1, -1, 0, 0, 1, 4, 3]
    results = []
    for backend in (NativeStep, ReferenceStep):
        step = new_step(model, backend)
        run(step, IDS[:20], 0)
        results.append(run(step, IDS[100:107], 20, parents=parents))
    assert np.linalg.norm(results[0] - results[1]) < 2e-2 * np.linalg.norm(results[1])


def spans_of(lengths, counts, pages):
    """Sequences with their pages dealt out from a shuffled pool: (start, count, pages, tokens) each."""
    spans = []
    for index, (start, count) in enumerate(zip(lengths, counts, strict=True)):
        needed = -(-(start + count) // PAGE)
        spans.append((start, count, [pages.pop() for _ in range(needed)], np.roll(IDS, -7 * index)))
    return spans


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("draft", [False, True], ids=["exact", "draft"])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_neighbours_and_pages_change_no_bit(model, isa, draft, data):
    count = data.draw(st.integers(2, 8))
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 100, PAGE - 2, PAGE, 300]), min_size=count, max_size=count))
    counts = data.draw(st.lists(st.sampled_from([1, 2, 5, 17, 30]), min_size=count, max_size=count))
    step = new_step(model, sequences=8, isa=isa, threads=data.draw(st.integers(1, 3)))
    pages = data.draw(st.permutations(range(24)))
    spans = spans_of(lengths, counts, list(pages))
    for start, _, own, ids in spans:
        for first in range(0, start, 250):
            size = min(250, start - first)
            step.run(Rows(ids[first : first + size], [SpanRows(first, size, own[: -(-(first + size) // PAGE)])]))
    parents = [[-1, *([0] * (size - 1))] if index % 3 == 0 else None for index, size in enumerate(counts)]
    tokens = np.concatenate([ids[start : start + size] for start, size, _, ids in spans])
    wanted = np.arange(len(tokens), dtype=np.int32)
    rows = [SpanRows(start, size, own, p) for (start, size, own, _), p in zip(spans, parents, strict=True)]
    step.run(Rows(tokens, rows, draft=draft, wanted=wanted))
    together, first = step.logits().copy(), 0
    for (start, size, _, ids), tree in zip(spans, parents, strict=True):
        alone = new_step(model, isa=isa)
        for begin in range(0, start, 250):
            run(alone, ids[begin : min(begin + 250, start)], begin)
        expected = run_alone(alone, ids[start : start + size], start, isa=isa, draft=draft, parents=tree)
        assert np.array_equal(together[first : first + size], expected)
        first += size


def test_wanted_rows_are_those_of_all(model):
    step = new_step(model)
    every = run(step, IDS[:40], 0)
    for wanted in ([], [0], [39], [3, 4, 20], list(range(0, 40, 2))):
        rows = chain(IDS[:40])
        step.run(Rows(rows.tokens, rows.spans, wanted=np.array(wanted, np.int32)))
        assert np.array_equal(step.logits(), every[wanted])


def test_draws_are_those_of_the_logits(model):
    from speq.runtime.sampling import Sampling, choose

    step = new_step(model)
    rows = chain(IDS[:20], logits="all")
    samplings = [Sampling(), Sampling(1.0, seed=4), Sampling(0.7, 12, 0.9, 0.01, 9)]
    chosen = [samplings[row % 3] for row in range(20)]
    draws = [Draw(*sampling.draw(row + 1)) for row, sampling in enumerate(chosen)]
    step.run(Rows(rows.tokens, rows.spans, wanted=rows.wanted, draws=draws))
    expected = [choose(logits, chosen[row], row + 1) for row, logits in enumerate(step.logits())]
    assert step.drawn() == [tuple(choice) for choice in expected]


@pytest.mark.parametrize(("backend", "isa"), [*((NativeStep, isa) for isa in ISAS), (ReferenceStep, None)], ids=str)
def test_a_pass_tells_the_most_probable_tokens(model, backend, isa):
    """As many as each row asks for, as NumPy finds them in the logits."""
    from speq.runtime.sampling import Sampling, choose
    from speq.runtime.sampling_reference import likely_reference

    step = new_step(model, isa=isa) if backend is NativeStep else new_step(model, backend)
    rows = chain(IDS[:20], logits="all")
    samplings = [Sampling(), Sampling(1.0, seed=4), Sampling(0.7, 12, 0.9, 0.01, 9)]
    for level in (False, True):
        draws = [samplings[row % 3].draw(row + 1, row % 9) for row in range(20)]
        step.run(Rows(rows.tokens, rows.spans, draft=level, wanted=rows.wanted, draws=draws, confidences=False))
        for row, (logits, (token, _, likely)) in enumerate(zip(step.logits(), step.drawn(), strict=True)):
            expected = likely_reference(logits, samplings[row % 3], row % 9)
            assert [each for each, _ in likely] == [each for each, _ in expected]
            np.testing.assert_allclose([p for _, p in likely], [p for _, p in expected], rtol=1e-4)
            assert token == choose(logits, samplings[row % 3], row + 1).token


def test_taps_keep_the_residual_stream(model):
    native, reference = new_step(model), new_step(model, ReferenceStep)
    rows = chain(IDS[:9])
    for step in (native, reference):
        step.run(Rows(rows.tokens, rows.spans, taps=("layer.0", "layer.1")))
    assert np.array_equal(native.tapped("layer.1"), native.buffer("hidden")[:9])
    for name in ("layer.0", "layer.1"):
        difference = native.tapped(name) - reference.tapped(name)
        assert np.linalg.norm(difference) < 2e-2 * np.linalg.norm(reference.tapped(name))
    native.run(rows)
    with pytest.raises(ValueError, match=r"did not ask for the tap 'layer.0'"):
        native.tapped("layer.0")
    with pytest.raises(ValueError, match=r"there is no tap 'layer.9'"):
        native.run(Rows(rows.tokens, rows.spans, taps=("layer.9",)))


@pytest.mark.parametrize("backend", [NativeStep, ReferenceStep])
@pytest.mark.parametrize(
    "spans",
    [
        [SpanRows(0, 3, [0])],
        [SpanRows(0, 4, [])],
        [SpanRows(0, 4, [0, 1])],
        [SpanRows(-1, 4, [0])],
        [SpanRows(0, 2, [0]), SpanRows(0, 3, [1])],
        [SpanRows(0, 4, [99])],
        [SpanRows(0, 4, [-1])],
        [SpanRows(0, 4, [0], [-1, 0, 2, 1])],
        [SpanRows(0, 4, [0], [-1, 0, 3, 1])],
        [SpanRows(0, 4, [0], [-1, -2, 0, 0])],
        [SpanRows(0, 4, [0], [-1, 0])],
        [SpanRows(2**31 - 2, 4, [0])],
        [],
    ],
)
def test_spans_that_cannot_be(model, backend, spans):
    with pytest.raises(ValueError, match=r"."):
        new_step(model, backend).run(Rows(IDS[:4], spans))


@pytest.mark.parametrize("wanted", [[4], [-1], [1, 1], [2, 1]])
def test_rows_that_cannot_be_wanted(model, wanted):
    with pytest.raises(ValueError, match="wanted rows"):
        new_step(model).run(Rows(IDS[:4], [SpanRows(0, 4, [0])], wanted=np.array(wanted, np.int32)))


def test_a_tree_has_a_largest_size(model):
    with pytest.raises(ValueError, match="tree"):
        run(new_step(model), IDS[:65], 0, parents=[-1] * 65)
