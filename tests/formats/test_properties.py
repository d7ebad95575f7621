"""Properties that hold for any weights and any edges, drops and levels, not only for the defaults."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from speq.formats import Spec, decode, draft_values, encode, reference, to_float32

shapes = st.tuples(st.integers(1, 9), st.integers(1, 200))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    edge = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32), st.floats(0.0078125, 1.0, width=32))
    edges = draw(st.lists(edge, min_size=8, max_size=8))
    drops = draw(st.lists(st.one_of(st.just(0), st.integers(0, 0x7FFF)), min_size=8, max_size=8))
    return Spec(
        draw(st.sampled_from(["nested", "e3m0"])),
        draw(st.sampled_from(["fp16", "bf16"])),
        draw(st.sampled_from([32, 64, 128])),
        tuple(draw(st.sampled_from([edges, sorted(edges)]))),
        tuple(drops),
        tuple(draw(st.lists(st.integers(-64, 64), min_size=16, max_size=16))),
    )


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Random patterns, in whole or with exponents from a narrow range, as real weights have."""
    bits = draw(hnp.arrays(np.uint16, draw(shapes), elements=st.integers(0, 0xFFFF)))
    narrow, base = draw(st.sampled_from([0xFFFF, 0x8FFF, 0x83FF])), draw(st.integers(0, 0x7FFF))
    return ((bits & narrow) ^ base).astype(np.uint16)


@settings(max_examples=300, deadline=None)
@given(matrices(), specs())
def test_any_format_keeps_any_weights(bits, spec):
    tensor = encode(bits, spec)
    assert np.array_equal(decode(tensor), bits)
    plain = reference.encode(bits, spec)
    for name, plane in tensor.planes().items():
        assert plane.tobytes() == plain.planes()[name].tobytes(), name
    assert np.array_equal(reference.decode(tensor), bits)
    assert draft_values(tensor).tobytes() == reference.draft_values(tensor).tobytes()


@settings(max_examples=200, deadline=None)
@given(matrices(), st.sampled_from(["nested", "e3m0"]), st.sampled_from(["fp16", "bf16"]), st.data())
def test_rows_are_independent(bits, format, dtype, data):
    """Of two equal rows each gets the same draft, wherever it stands, and scales are 0 or positive normal numbers."""
    spec = Spec.default(format, dtype, data.draw(st.sampled_from([32, 64, 128])))
    twice = encode(np.concatenate([bits, bits[::-1]]), spec)
    drafts = draft_values(twice)
    assert drafts[: len(bits)].tobytes() == drafts[len(bits) :][::-1].tobytes()
    scales = to_float32(twice.scales, "bf16")
    assert ((scales == 0) | (np.isfinite(scales) & (scales >= 2.0**-100))).all()
