"""The native step against the reference step, and its promise that no bit depends on how the work is divided."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from isas import DRAFTS_SEVERAL_ROWS_APART

from speq.backends.cpu import NativeStep, available_isas
from speq.backends.reference.step import ReferenceStep
from speq.errors import SpeqError
from speq.formats import Spec, encode, from_float32
from speq.graph.ops import Attention, Tap
from speq.graph.step import chain
from speq.models.config import model_config
from speq.models.decoder import build_program, weight_shapes
from speq.runtime.kv import KVPool

SIZES = {
    "vocab_size": 131,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama": {"model_type": "llama"},
    "llama odd widths": {
        "model_type": "llama",
        "hidden_size": 60,
        "intermediate_size": 101,
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral window": {"model_type": "mistral", "sliding_window": 7, "head_dim": 40, "num_key_value_heads": 1},
    "qwen2 tied yarn": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "num_attention_heads": 8},
}
SPECS = [
    ("nested", "bf16", 64),
    ("nested", "fp16", 32),
    ("nested", "bf16", 128),
    ("e3m0", "fp16", 64),
    ("e3m0", "bf16", 32),
]
ISAS = available_isas()
IDS = np.random.default_rng(5).integers(0, 131, 40).astype(np.int32)


def model(name, spec=SPECS[0]):
    """Program and random weights."""
    config = model_config({**SIZES, **MODELS[name]})
    rng = np.random.default_rng(0)
    weights = {}
    for key, shape in weight_shapes(config).items():
        if len(shape) == 1:
            weights[key] = (rng.standard_normal(shape) * 0.2 + ("bias" not in key)).astype(np.float32)
        else:
            values = rng.standard_normal(shape) / shape[1] ** 0.5
            weights[key] = encode(from_float32(values.astype(np.float32), spec[1]), Spec.default(*spec), threads=1)
    return build_program(config), weights


def steps(program, weights, **options):
    """A new step of each backend with a cache of its own."""
    native, reference = (new_cache(program) for _ in range(2))
    return NativeStep(program, weights, native, 64, **options), ReferenceStep(program, weights, reference, 64)


def new_cache(program):
    return KVPool(program.layers, program.kv_heads, program.head_dim, context=64)


def native_step(program, weights, **options):
    return NativeStep(program, weights, new_cache(program), 64, **{"threads": 2, **options})


def run(step, tokens, start, *, draft=False, logits="last"):
    step.run(chain(tokens, start, draft=draft, logits=logits))
    return step.logits()


def in_passes(step, sizes, **options):
    rows, start = [], 0
    for size in sizes:
        rows.append(run(step, IDS[start : start + size], start, logits="all", **options).copy())
        start += size
    assert start == len(IDS)
    return np.concatenate(rows)


def error(actual, expected):
    """Root mean square difference, relative to the root mean square."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", MODELS)
def test_exact_logits_equal_the_reference(name, isa):
    """In FP16, where no activation is rounded: a sum in another order would round some of them to the other side."""
    native, reference = steps(*model(name, ("nested", "fp16", 64)), isa=isa, threads=2)
    assert error(run(native, IDS, 0, logits="all"), run(reference, IDS, 0, logits="all")) < 2e-4
    assert error(run(native, IDS[:3], 40), run(reference, IDS[:3], 40)) < 2e-4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(map(str, spec)))
def test_every_format_operator_by_operator(spec, isa):
    """Each from the same inputs: of a whole model, a sum in another order would round activations to the other side."""
    program, weights = model("qwen2 tied yarn", spec)
    caches = [new_cache(program) for _ in range(2)]
    native = NativeStep(program, weights, caches[0], 64, isa=isa, threads=2)
    reference = ReferenceStep(program, weights, caches[1], 64)
    for ids in (IDS, IDS[:3]):  # many tokens share their rounded activations, few do not
        rows = slice(len(ids))
        for index, op in enumerate(program.ops[:-2]):
            for name in program.buffers:
                native.buffer(name)[rows] = reference.buffer(name)[rows]
            native.run_one(index, chain(ids))
            reference.run_one(index, chain(ids))
            if isinstance(op, Tap):
                continue
            pairs = [(native.buffer(op.out)[rows], reference.buffer(op.out)[rows])]
            if isinstance(op, Attention):
                pairs += [
                    (a[:, op.layer].astype(np.float32), b[:, op.layer].astype(np.float32)) for a, b in kv_pairs(caches)
                ]
            assert all(error(actual, expected) < 2e-4 for actual, expected in pairs), index


def kv_pairs(caches):
    return (caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(map(str, spec)))
def test_every_format_drafts(spec, isa):
    native, reference = steps(*model("llama", spec), isa=isa, threads=2)
    run(native, IDS, 0, logits="none")
    run(reference, IDS, 0, logits="none")
    token = IDS[:1]
    assert error(run(native, token, 40, draft=True), run(reference, token, 40, draft=True)) < 0.1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", MODELS)
def test_draft_logits_are_close_to_the_reference(name, isa):
    """Not equal: the native draft rounds activations to 8 bits."""
    native, reference = steps(*model(name), isa=isa, threads=2)
    run(native, IDS[:8], 0, logits="none")
    run(reference, IDS[:8], 0, logits="none")
    for position in range(8, 12):
        token = IDS[position : position + 1]
        drafted = run(native, token, position, draft=True).copy()
        assert error(drafted, run(reference, token, position, draft=True)) < 0.1


def test_the_native_cache_holds_what_the_reference_cache_holds():
    program, weights = model("qwen3")
    caches = [new_cache(program) for _ in range(2)]
    run(NativeStep(program, weights, caches[0], 64, threads=2), IDS, 0)
    run(ReferenceStep(program, weights, caches[1], 64), IDS, 0)
    for native, reference in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        np.testing.assert_allclose(native.astype(np.float32), reference.astype(np.float32), rtol=4e-3, atol=4e-3)
        assert not native[0, :, :, 40:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("draft", [False, True])
def test_the_number_of_tokens_in_a_pass_changes_no_bit(name, isa, draft):
    program, weights = model(name)
    whole = in_passes(native_step(program, weights, isa=isa), [40], draft=draft)
    alone = [[1] * 40, [39, 1]]
    if draft and isa in DRAFTS_SEVERAL_ROWS_APART:  # a draft of one token is of another kind there than one of several
        alone = [[2] * 20]
    for sizes in (*alone, [2, 3, 4, 5, 6, 7, 8, 5], [16, 9, 15], [24, 16]):
        assert np.array_equal(in_passes(native_step(program, weights, isa=isa), sizes, draft=draft), whole), sizes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("draft", [False, True])
def test_threads_and_instruction_sets_change_no_bit(name, draft):
    program, weights = model(name)
    results = {
        isa: [
            in_passes(native_step(program, weights, isa=isa, threads=threads), [1, 5, 34], draft=draft)
            for threads in (1, 2, 3)
        ]
        for isa in ISAS
    }
    # Where there are BF16 dot products a draft of several tokens rounds its activations to BF16, elsewhere to 8 bits,
    # whose products tiles add in another order.
    others = [isa for isa in ISAS if isa not in DRAFTS_SEVERAL_ROWS_APART]
    kinds = [others, *([isa] for isa in DRAFTS_SEVERAL_ROWS_APART if isa in ISAS)]
    for isas in kinds if draft else [ISAS]:
        same = [rows for isa in isas for rows in results[isa]]
        assert all(np.array_equal(rows, same[0]) for rows in same)
        assert error(results[others[0]][0], same[0]) < 0.1


@pytest.mark.parametrize("isa", ISAS)
def test_matrices_that_share_an_input_may_differ_in_dtype(isa):
    program, weights = model("qwen3")
    half = model("qwen3", ("nested", "fp16", 64))[1]
    key = next(name for name in weights if name.endswith("k_proj.weight"))
    native, reference = steps(program, {**weights, key: half[key]}, isa=isa, threads=2)
    index = next(i for i, op in enumerate(program.ops) if key in getattr(op, "weights", ()))
    for ids in (IDS, IDS[:3]):
        reference.buffer("hidden")[:] = np.random.default_rng(4).standard_normal(reference.buffer("hidden").shape)
        native.buffer("hidden")[:] = reference.buffer("hidden")
        native.run_one(index, chain(ids))
        reference.run_one(index, chain(ids))
        rows = slice(len(ids))
        assert error(native.buffer("qkv")[rows], reference.buffer("qkv")[rows]) < 2e-4


def test_gate_and_up_of_two_dtypes_are_refused():
    program, weights = model("llama")
    half = model("llama", ("nested", "fp16", 64))[1]
    gate = next(name for name in weights if name.endswith("gate_proj.weight"))
    with pytest.raises(SpeqError, match=r"gate_proj.* differ in dtype; convert the checkpoint with --dtype"):
        native_step(program, {**weights, gate: half[gate]})


def test_drafts_leave_no_trace_once_verified():
    program, weights = model("llama")
    step = native_step(program, weights)
    run(step, IDS[:20], 0)
    plain = run(step, IDS[20:26], 20, logits="all").copy()
    for position in range(20, 26):
        run(step, IDS[position : position + 1], position, draft=True)
    assert np.array_equal(run(step, IDS[20:26], 20, logits="all"), plain)


def test_which_logits():
    program, weights = model("llama")
    step = native_step(program, weights)
    every = run(step, IDS, 0, logits="all").copy()
    assert every.shape == (40, 131)
    assert np.array_equal(run(step, IDS, 0), every[-1:])
    assert run(step, IDS, 0, logits="none").shape == (0, 131)


@pytest.mark.parametrize("isa", ISAS)
def test_numbers_that_are_not_finite_come_through(isa):
    program, weights = model("llama")
    weights["model.norm.weight"] = weights["model.norm.weight"].copy()
    weights["model.norm.weight"][3] = np.nan
    assert not np.isfinite(run(native_step(program, weights, isa=isa), IDS[:2], 0)).any()


@pytest.mark.parametrize(("tokens", "start"), [([], 0), ([1] * 65, 0), ([1], -1), ([131], 0), ([-1], 0)])
def test_misuse(tokens, start):
    program, weights = model("llama")
    step = native_step(program, weights)
    with pytest.raises(ValueError, match=r"."):
        run(step, np.array(tokens, dtype=np.int32), start)


def test_options_that_cannot_be_met():
    program, weights = model("llama")
    with pytest.raises(SpeqError, match=r"no kernels for 'abacus'.*portable"):
        native_step(program, weights, isa="abacus")
    with pytest.raises(SpeqError, match="threads 0 is out of range"):
        native_step(program, weights, threads=0)


def in_threads(works):
    """Run functions at the same time and return what they return; whoever hangs fails."""
    found = {}
    begin = threading.Barrier(len(works))

    def run(index, work):
        begin.wait()
        found[index] = work()

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a pass hangs"
    return [found[index] for index in range(len(works))]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_passes_from_several_python_threads_do_not_mix(threads):
    """Each works at the end of the same cache, whose entries are the same whoever writes them."""
    program, weights = model("llama")
    step = native_step(program, weights, threads=threads)
    run(step, IDS, 0, logits="none")
    spans = [(0, 40), (39, 1), (32, 8), (35, 3), (8, 32), (20, 20)]
    expected = [run(step, IDS[start : start + count], start, logits="all").copy() for start, count in spans]

    def work(start, count):
        return [run(step, IDS[start : start + count], start, logits="all") for _ in range(25)]

    # Whose pass was the last one is for the callers to arrange; what it gave is whole.
    for rows in itertools.chain(*in_threads([lambda span=span: work(*span) for span in spans])):
        assert any(np.array_equal(rows, wanted) for wanted in expected)
    for (start, count), wanted in zip(spans, expected, strict=True):
        assert np.array_equal(run(step, IDS[start : start + count], start, logits="all"), wanted)


def test_later_passes_leave_logits_alone_that_somebody_holds():
    program, weights = model("llama")
    step = native_step(program, weights)
    held = [run(step, IDS[:count], 0, logits="all") for count in (1, 2, 40, 3, 1)]
    copies = [rows.copy() for rows in held]
    del step
    other = native_step(program, weights)
    held += [run(other, IDS[1:], 0, logits="all")]
    for rows, copy in zip(held, copies, strict=False):
        assert np.array_equal(rows, copy)


def test_memory_of_logits_is_used_again():
    program, weights = model("llama")
    step = native_step(program, weights)
    seen = set()
    rows = run(step, IDS[:1], 0)
    for _ in range(20):
        rows = run(step, IDS[:1], 0)
        seen.add(rows.ctypes.data)
    assert len(seen) == 2  # the caller holds one while the other is filled


def test_tokens_that_change_during_a_pass_do_no_harm():
    program, weights = model("llama")
    step = native_step(program, weights)
    ids = np.zeros(64, np.int32)
    expected = run(step, ids, 0).copy()
    stop = threading.Event()

    def meddle():
        while not stop.is_set():
            ids[:] = 2**30
            ids[:] = 0

    def work():
        outcomes = set()
        for _ in range(150):
            try:
                outcomes.add(np.array_equal(run(step, ids, 0), expected))
            except ValueError:
                outcomes.add("refused")
        stop.set()
        return outcomes

    assert in_threads([meddle, work])[1] <= {True, "refused"}


REFUSED = """
import numpy as np, resource, sys
import test_native_step as this
from speq.formats import Spec, decode, encode
from speq.errors import SpeqError
program, weights = this.model("llama")
{limit}
for threads in (2, 40):
    try:
        this.native_step(program, weights, threads=threads)
    except SpeqError as error:
        print(error)
print(this.in_passes(this.native_step(program, weights, threads=1), [1, 39]).shape)
bits = np.arange(256 * 64, dtype=np.uint16).reshape(256, 64)
print(np.array_equal(decode(encode(bits, Spec.default("nested", "fp16", 64), threads=8), threads=8), bits))
"""


ORDINARY_STACK = 8 << 20


def without_threads(code, stack=ORDINARY_STACK):
    """The output of Python code in a process whose threads would need ``stack`` bytes each."""
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("the stack is limited here")
    if stack > ORDINARY_STACK and "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the sanitizer has plans of its own for the addresses")
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (stack, hard)),
        cwd=Path(__file__).parent,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_threads_that_the_system_refuses_are_one_clear_line():
    """No thread at all: each would need more addresses than a process has."""
    refused = "only 1 of {} threads could be started (Resource temporarily unavailable): use fewer with --threads"
    two, forty, *rest = without_threads(REFUSED.format(limit=""), 1 << 47)
    assert two.startswith(refused.format(2))
    assert forty.startswith(refused.format(40))
    assert rest == ["(40, 131)", "True"]


def test_threads_that_were_started_before_one_was_refused_end():
    limit = """
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (6 << 30),) * 2)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("addresses cannot be limited here")
    forty, *rest = without_threads(REFUSED.format(limit=limit), 1 << 30)
    started = int(forty.split()[1])
    assert 2 <= started <= 7
    assert forty.startswith(f"only {started} of 40 threads could be started")
    assert rest == ["(40, 131)", "True"]


def test_a_forked_process_is_told_and_ends():
    code = """
import os
import numpy as np
import test_native_step as this
from speq.errors import SpeqError
program, weights = this.model("llama")
step = this.native_step(program, weights, threads=3)
this.run(step, this.IDS, 0)
child = os.fork()
if not child:
    try:
        this.run(step, this.IDS, 0)
    except SpeqError as error:
        print(error)
    del step  # waits for no thread
    print(this.run(this.native_step(program, weights, threads=3), this.IDS, 0).shape, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(this.run(step, this.IDS, 0).shape)
"""
    told, child, parent = without_threads(code)
    assert told.startswith("this model was loaded before the process was forked")
    assert child == parent == "(1, 131)"


def test_the_interpreter_ends_while_a_daemon_thread_is_in_a_pass():
    code = """
import threading, time
import test_native_step as this
program, weights = this.model("llama")
step = this.native_step(program, weights, threads=2)
begun = threading.Event()
def work():
    while True:
        this.run(step, this.IDS, 0)
        begun.set()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
"""
    for _ in range(3):  # without the guard most of them abort
        assert without_threads(code) == []
