"""The Python interface on a mock model with a byte tokenizer, and `speq.load` on a tiny real one."""

from __future__ import annotations

import codecs
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import speq
from speq.runtime.batch import Limits
from speq.runtime.kv import KVPool
from speq.runtime.sampling import choose
from speq.serving.api import Model

END = 257


class Bytes:
    """A tokenizer whose tokens are bytes; chat messages are written as ``role:content|``."""

    def encode(self, text, *, special=True):
        return list(text.encode())

    def chat(self, messages):
        return self.encode("".join(f"{m['role']}:{m['content']}|" for m in messages))

    def stream(self, prompt=()):
        return Utf8()


class Utf8:
    """The text of bytes, character by character; the token that ends a text has a name only."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        return self.decoder.decode(bytes([token]))

    def flush(self):
        return self.decoder.decode(b"", True)

    def special(self, token):
        return "<end>" if token == END else ""


class Script:
    """An engine that goes on with ``text`` after ``prompt`` and then ends; every draft of an ``e`` is wrong."""

    levels = ("draft", "exact")

    def __init__(self, text, prompt):
        self.script = [*prompt.encode(), *text.encode(), END]
        self.vocab_size, self.limits = 258, Limits(500, 256, 64, 16, 4)
        self.kv = KVPool(1, 1, 1, context=500, sequences=4)
        self.computed = 0

    def check(self, kv, tokens):
        assert kv.length + len(tokens) <= self.limits.context

    def run(self, batch):
        drawn = []
        for span in batch.spans:
            self.computed += len(span.tokens)
            self.kv.make_room(span.kv, len(span.tokens))
            drawn.append([self.draw(span, row, batch.level) for row in span.wanted])
            self.kv.extend(span.kv, span.tokens, exact=batch.level == "exact")
        return SimpleNamespace(drawn=drawn.__getitem__)

    def draw(self, span, row, level):
        """What follows depends on the position alone; nobody proposes trees here."""
        following = self.script[min(span.kv.length + row + 1, len(self.script) - 1)]
        logits = np.zeros(self.vocab_size, np.float32)
        logits[ord("x") if level == "draft" and following == ord("e") else following] = 9
        return choose(logits, span.sampling, span.kv.length + row + 1)


def scripted(text, prompt="user:hello|"):
    return Model(Script(text, prompt), Bytes(), name="script", format="nested", threads=2, ends=frozenset([END]))


@pytest.mark.parametrize("draft", ["none", "self", "auto"])
@pytest.mark.parametrize("length", [1, 4, 16, None])
def test_text_arrives_in_whole_characters(draft, length):
    text = "Grüße aus Zürich 🏔 — 你好, e e e\n"
    pieces = list(scripted(text).stream("hello", draft=draft, draft_length=length))
    assert "".join(piece.text for piece in pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)
    assert [token for piece in pieces for token in piece.token_ids] == [*text.encode(), END]


def test_result_has_the_fields_of_the_contract():
    result = scripted("three rivers").generate("hello", draft="self", draft_length=4)
    fields = result.to_dict()
    assert " ".join(fields) == (
        "text token_ids prompt_tokens new_tokens finish_reason prefill_seconds decode_seconds tokens_per_second draft "
        "rounds drafted accepted acceptance_rate tokens_per_round accepted_per_position draft_seconds verify_seconds "
        "seed model format threads"
    )
    assert fields["text"] == "three rivers"
    assert fields["new_tokens"] == len(fields["token_ids"]) == 13
    assert (fields["prompt_tokens"], fields["finish_reason"], fields["seed"]) == (11, "stop", None)
    assert (fields["draft"], fields["model"], fields["format"], fields["threads"]) == ("self", "script", "nested", 2)
    assert fields["accepted"] + fields["rounds"] == fields["new_tokens"]  # the token after the end is cut
    assert 0 < fields["accepted"] < fields["drafted"]
    assert sum(fields["accepted_per_position"]) == fields["accepted"]


@pytest.mark.parametrize("draft", ["none", "self"])
@pytest.mark.parametrize(
    ("stop", "shown", "count"),
    [
        ("riv", "three ", 9),
        (("xyz", "ree r"), "th", 7),
        ("s", "three river", 12),
        (("rivers!", "vers?"), "three rivers", 13),
    ],
)
def test_stop_strings_end_text_and_tokens_alike(draft, stop, shown, count):
    result = scripted("three rivers").generate("hello", stop=stop, draft=draft, draft_length=7)
    assert result.text == shown
    assert len(result.token_ids) == result.stats.new_tokens == count
    assert result.stats.finish_reason == "stop"


def test_a_stop_string_inside_a_character_boundary():
    result = scripted("a€b€c").generate("hello", stop="b€", draft="self", draft_length=16)
    assert result.text == "a€"


@pytest.mark.parametrize("draft", ["none", "self"])
@pytest.mark.parametrize(("stop", "count"), [("<end>", 4), ("s<end>", 4), ("<end", 4), (("zz", "<end>xx"), 6)])
def test_a_special_token_in_a_stop_string_ends_the_text(draft, stop, count):
    model = scripted("yes")
    model.engine.engine.script += b"xxyy"  # goes on after the token
    result = model.generate("hello", stop=stop, ignore_ends=True, draft=draft, draft_length=7, max_new_tokens=7)
    assert len(result.token_ids) == result.stats.new_tokens == count
    assert result.stats.finish_reason == "stop"
    assert result.text == ("ye" if stop == "s<end>" else "yes")


def test_stop_strings_and_transformers_agree_on_special_tokens(tiny_checkpoint, tmp_path, monkeypatch):
    import torch
    from transformers import AutoTokenizer, StopStringCriteria

    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path))
    model, theirs = speq.load(tiny_checkpoint, threads=1), AutoTokenizer.from_pretrained(tiny_checkpoint)
    for seed in range(20):
        sampling = speq.Sampling(temperature=8.0, seed=seed)
        options = {"raw": True, "max_new_tokens": 200, "sampling": sampling, "ignore_ends": True}
        free = model.generate("x", **options).token_ids
        if 258 in free[20:-1] and free[free.index(258) + 1] < 94:
            break
    after = model.tokenizer.decode([free[free.index(258) + 1]])
    for stop in ("<|turn|>", "<|tur", "rn|>", "<|end|>", "<|turn|>" + after, "|>" + after, "\n\n\n"):
        criterion = StopStringCriteria(tokenizer=theirs, stop_strings=[stop])
        ends = [n for n in range(1, len(free) + 1) if criterion(torch.tensor([free[:n]]), None)[0]]
        result = model.generate("x", stop=stop, **options)
        assert len(result.token_ids) == (ends[0] if ends else len(free))
        assert result.stats.finish_reason == ("stop" if ends else "length")


def test_a_raw_text_goes_on_where_the_prompt_ends(tmp_path, monkeypatch):
    class Told(Bytes):
        def stream(self, prompt=()):
            told.append(list(prompt))
            return Utf8()

    told = []
    model = scripted("x", prompt="hello")
    model.tokenizer = Told()
    model.generate("hello", raw=True)
    model.generate([104, 101], raw=True, max_new_tokens=1)
    model.generate([104, 101], max_new_tokens=1)
    model.generate("hello", max_new_tokens=1)
    model.generate([{"role": "user", "content": "x"}], raw=True, max_new_tokens=1)
    assert told == [list(b"hello"), [104, 101], [], [], []]


def test_prompt_and_raw_text_are_what_all_tokens_decode_to(write_checkpoint, tmp_path, monkeypatch):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import AutoTokenizer

    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    path = write_checkpoint(tmp_path / "spaces")
    words = ["<unk>", "▁", "x", "▁x", *(f"▁w{i}" for i in range(255))]
    library = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("▁", "x")], unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.save(str(path / "tokenizer.json"))
    model, theirs = speq.load(path, threads=1), AutoTokenizer.from_pretrained(path)
    prompt = model.encode("x x", raw=True)
    for draft in ("none", "self"):
        options = {"max_new_tokens": 9, "draft": draft, "ignore_ends": True}
        result = model.generate("x x", raw=True, **options)
        assert result.text.startswith(" w")
        assert "x x" + result.text == theirs.decode(prompt + result.token_ids)
        assert model.generate(prompt, raw=True, **options).text == result.text
        assert model.generate(prompt, **options).text == theirs.decode(result.token_ids) == result.text[1:]


def test_prompts_of_several_kinds_at_once_are_refused():
    with pytest.raises(speq.SpeqError, match="text, token ids, or messages, not some of each"):
        scripted("x").encode([{"role": "user", "content": "x"}, "text"])


def test_prompts_are_text_messages_or_ids():
    model = scripted("x")
    assert model.encode("hello") == model.encode([{"role": "user", "content": "hello"}]) == list(b"user:hello|")
    assert model.encode("hello", raw=True) == list(b"hello")
    assert model.encode(np.array([1, 2], np.int64)) == model.encode((1, 2)) == [1, 2]
    assert model.encode([]) == []


def test_the_cache_is_reused_for_a_prompt_that_continues():
    model = scripted("three rivers")
    first = model.generate("hello")
    model.engine.engine.computed = 0
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "more"},
    ]
    again = model.generate(messages, max_new_tokens=1)
    prompt = model.encode(messages)
    assert again.stats.prompt_tokens == len(prompt)
    assert model.engine.engine.computed == len(prompt) - len(
        "user:hello|"
    )  # the answer is spelt differently in the prompt
    model.engine.engine.computed = 0
    model.generate("hello", max_new_tokens=1)
    assert model.engine.engine.computed == 1


def test_an_interrupted_prefill_leaves_no_false_cache():
    model = scripted("three rivers")
    engine = model.engine.engine
    run = engine.run

    def interrupted(batch):
        run(batch)
        raise KeyboardInterrupt

    engine.run = interrupted
    stream = model.stream("hello")
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert stream.result.stats.finish_reason == "interrupted"
    engine.run, engine.computed = run, 0
    assert model.generate("hello").text == "three rivers"
    assert model.engine.engine.computed >= len("user:hello|")


def test_an_interruption_keeps_what_was_generated():
    model = scripted("three rivers")
    stream = model.stream("hello", draft="none")
    taken = [next(stream) for _ in range(4)]
    assert stream.result.text == "thre" == "".join(piece.text for piece in taken)
    assert stream.result.stats.new_tokens == 4
    assert stream.result.to_dict()["finish_reason"] == "interrupted"
    assert model.generate("hello").text == "three rivers"
    assert "".join(piece.text for piece in stream) == "e rivers"
    assert stream.result.text == "three rivers"


def test_ignore_ends_goes_on():
    result = scripted("ab").generate("hello", ignore_ends=True, max_new_tokens=6, stop="nothing")
    assert result.token_ids[:3] == [97, 98, END]
    assert len(result.token_ids) == 6
    assert result.stats.finish_reason == "length"


@pytest.mark.parametrize("record", [False, True])
def test_a_round_is_told_when_it_is_over_also_beside_a_trace(record):
    told = []
    stream = scripted("abcabc").stream("hello", draft="self", draft_length=2, record=record, on_round=told.append)
    for _ in stream:
        assert sum(one.accepted + 1 for one in told) + 1 >= len(stream.result.token_ids)
    stats = stream.result.stats
    assert (len(told), sum(one.proposed for one in told)) == (stats.rounds, stats.drafted)
    assert [step["accepted"] for step in stream.steps[1:]] == ([one.accepted for one in told] if record else [])


def test_seconds_are_those_of_the_clock_that_is_given():
    ticks = iter(range(10**6))
    model = Model(Script("ab", "user:hello|"), Bytes(), ends=frozenset([END]), clock=lambda: float(next(ticks)))
    stats = model.generate("hello", draft="none").stats
    assert stats.decode_seconds >= stats.rounds == 2
    assert stats.decode_seconds == int(stats.decode_seconds)


def test_sampling_reports_its_seed():
    result = scripted("ab").generate("hello", sampling=speq.Sampling(temperature=0.5))
    assert result.to_dict()["seed"] == result.stats.seed is not None
    result = scripted("ab").generate("hello", sampling=speq.Sampling(temperature=0.5, seed=7))
    assert result.stats.seed == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "0 new tokens"),
        ({"draft": "medusa"}, "no draft 'medusa': choose one of auto, self, ngram, cascade, head, head-direct, model"),
        ({"draft_length": 17}, "draft length 17 is out of range"),
        ({"draft_length": 0}, "draft length 0 is out of range"),
        ({"stop": ["a", ""]}, "stop string is empty"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(speq.SpeqError, match=message):
        scripted("x").stream("hello", **options)


def test_without_a_tokenizer_there_are_ids_only():
    model = Model(Script("ab", ""), None, name="bare", ends=frozenset([END]))
    result = model.generate([1])
    assert (result.text, result.token_ids[-1]) == ("", END)
    with pytest.raises(speq.SpeqError, match="bare has no tokenizer: give token ids"):
        model.stream("text")
    with pytest.raises(speq.SpeqError, match="stop strings cannot be found"):
        model.stream([1], stop="x")


def test_load_converts_once_and_generates(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path))
    reports = []
    model = speq.load(tiny_checkpoint, threads=1, context=100, progress=lambda *report: reports.append(report))
    assert reports
    assert (model.threads, model.format, model.engine.context_length) == (1, "nested", 100)
    assert model.ends == {257}
    result = model.generate("hi", max_new_tokens=20)
    text = "".join(piece.text for piece in model.stream("hi", max_new_tokens=20))
    assert text == result.text
    reports.clear()
    again = speq.load(str(tiny_checkpoint), threads=1, progress=lambda *report: reports.append(report))
    assert not reports
    assert again.generate("hi", max_new_tokens=20, draft="none").token_ids == result.token_ids
    with pytest.raises(speq.SpeqError, match="threads 0"):
        speq.load(tiny_checkpoint, threads=0)


def test_importing_speq_imports_nothing_heavy():
    code = (
        "import sys, speq, speq.cli; heavy = {'numpy', 'rich', 'jinja2', 'tokenizers', 'gguf', 'huggingface_hub'};"
        "print(sorted(heavy & set(sys.modules)), speq.Sampling.__name__, speq.__version__ > '')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[] Sampling True\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        speq.nothing  # noqa: B018


PROMPTS = ("aaa", "bbbbbb", "a" * 40, "Grüße", "aaab")
SAMPLINGS = (None, speq.Sampling(temperature=0.9, seed=3), speq.Sampling(temperature=1.5, top_k=20, seed=2**40))
KINDS = list(itertools.product(PROMPTS, SAMPLINGS, ("auto", "self", "none")))


def options(kind, **more):
    _, sampling, draft = kind
    return {"sampling": sampling, "draft": draft, "raw": True, "ignore_ends": True, **more}


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint, tmp_path_factory):
    """A tiny real model on a team of two threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        return speq.load(tiny_checkpoint, threads=2)


def alone(model, tokens, kinds=KINDS):
    """What each kind of generation gives when nothing else runs."""
    found = {}
    for kind in kinds:
        model.reset()
        found[kind] = model.generate(kind[0], **options(kind, max_new_tokens=tokens)).token_ids
    return found


def run_threads(*works, seconds=60):
    """Run functions at the same time; whoever raises or hangs fails."""
    failures = []

    def run(work):
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert not failures


def differing(model, right, threads, generations, tokens, seconds):
    """How many of the generations of some threads, each with prompts and samplings in another order, went wrong."""
    wrong = []

    def work(thread):
        order = np.random.default_rng(thread).choice(len(right), generations)
        for kind in (list(right)[i] for i in order):
            given = options(kind, max_new_tokens=tokens)
            if thread % 2:
                found = [token for piece in model.stream(kind[0], **given) for token in piece.token_ids]
            else:
                found = model.generate(kind[0], **given).token_ids
            if found != right[kind]:
                wrong.append(kind)

    run_threads(*(lambda thread=thread: work(thread) for thread in range(threads)), seconds=seconds)
    return len(wrong)


def test_eight_threads_make_200_generations_each(tiny):
    right = alone(tiny, 12)
    assert len({tuple(ids) for ids in right.values()}) >= 10
    assert differing(tiny, right, threads=8, generations=200, tokens=12, seconds=300) == 0


@pytest.mark.slow
def test_eight_threads_share_a_real_model():
    try:
        model = speq.load("smollm2-135m-instruct")
    except speq.SpeqError as error:
        pytest.skip(f"the model cannot be had here: {error}")
    kinds = [("Name three rivers.", None, "auto"), ("Once upon a time", SAMPLINGS[1], "self"), KINDS[-1]]
    assert differing(model, alone(model, 6, kinds), threads=8, generations=6, tokens=6, seconds=1000) == 0


def test_several_models_in_one_process_do_not_meet(tiny, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path))
    right = alone(tiny, 10, KINDS[:6])
    models = [speq.load(tiny_checkpoint, threads=threads) for threads in (1, 2, 3)]
    run_threads(
        *(lambda model=model: [alone(model, 10, KINDS[:6]) == right or 1 / 0 for _ in range(3)] for model in models)
    )


def test_streams_of_one_model_may_alternate(tiny):
    right = alone(tiny, 20)
    kinds = KINDS[::4]
    streams = [tiny.stream(kind[0], **options(kind, max_new_tokens=20)) for kind in kinds]
    waiting = list(streams)
    order = np.random.default_rng(0)
    while waiting:
        stream = waiting[order.integers(len(waiting))]
        if next(stream, None) is None:
            waiting.remove(stream)
    assert [stream.result.token_ids for stream in streams] == [right[kind] for kind in kinds]


def test_one_stream_may_be_read_by_several_threads(tiny):
    kind = KINDS[4]
    stream, found = tiny.stream(kind[0], **options(kind, max_new_tokens=40)), []
    run_threads(*[lambda: found.extend(len(piece.token_ids) for piece in stream)] * 4)
    assert sum(found) == 40
    assert stream.result.token_ids == alone(tiny, 40, [kind])[kind]


def test_a_stream_that_is_dropped_or_closed_disturbs_nobody(tiny):
    right = alone(tiny, 20)
    kept = tiny.stream("aaa", **options(KINDS[0], max_new_tokens=20))
    next(kept)
    closed = tiny.stream("bbbbbb", **options(KINDS[1], max_new_tokens=20))
    next(closed)
    closed.close()
    assert list(closed) == []
    assert closed.result.stats.finish_reason == "interrupted"
    dropped = [tiny.stream("aaab", **options(KINDS[2], max_new_tokens=20))]
    next(dropped[0])
    run_threads(dropped.clear)
    for _ in kept:
        pass
    assert kept.result.token_ids == right[KINDS[0]]


def test_a_reset_while_streams_run_changes_no_text(tiny):
    right = alone(tiny, 20, KINDS[:9])
    streams = {kind: tiny.stream(kind[0], **options(kind, max_new_tokens=20)) for kind in KINDS[:3]}
    for pieces in itertools.zip_longest(*streams.values()):
        tiny.reset()
        assert pieces
    assert {kind: stream.result.token_ids for kind, stream in streams.items()} == {k: right[k] for k in KINDS[:3]}
    stop = threading.Event()

    def resetting():
        while not stop.is_set():
            tiny.reset()

    def generating():
        try:
            assert all(tiny.generate(k[0], **options(k, max_new_tokens=20)).token_ids == right[k] for k in right)
        finally:
            stop.set()

    run_threads(resetting, generating)


def test_passes_of_an_engine_from_several_threads_stay_whole(tiny):
    """Calls append their tokens one after the other, in whatever order: of the same tokens each order is the same."""
    engine = tiny.engine
    expected = engine.forward([7] * 240, logits="all")
    engine.truncate(0)
    found = []
    run_threads(*[lambda: found.extend(engine.forward([7] * 10, logits="all") for _ in range(6))] * 4)
    engine.truncate(0)
    assert sorted(rows.tobytes() for rows in found) == sorted(
        expected[start : start + 10].tobytes() for start in range(0, 240, 10)
    )


def test_a_callback_that_uses_the_model_is_told(tiny_checkpoint, write_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    model = speq.load(write_checkpoint(tmp_path / "long", max_position_embeddings=1024), threads=1)
    prompt = [1 + i % 200 for i in range(600)]
    right = model.generate(prompt, max_new_tokens=5).token_ids
    for use in (
        lambda: model.generate("x", max_new_tokens=2),
        lambda: next(model.stream("x")),
        model.reset,
    ):
        model.reset()
        with pytest.raises(speq.SpeqError, match=r"the model .*long is in the middle of a pass of this thread"):
            model.generate(prompt, max_new_tokens=5, progress=lambda *_, use=use: use())
        assert model.generate(prompt, max_new_tokens=5).token_ids == right


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_an_exception_in_a_pass_ends_the_stream_and_nothing_else(tiny, monkeypatch, at):
    kind = KINDS[1]
    right = alone(tiny, 20, [kind])[kind]
    tiny.reset()
    other = tiny.stream(kind[0], **options(kind, max_new_tokens=20))
    next(other)
    run, calls = tiny.engine.engine._step.run, itertools.count(1)

    def interrupted(*arguments, **more):
        result = run(*arguments, **more)
        if next(calls) == at:
            raise KeyboardInterrupt
        return result

    stream = tiny.stream("bbb", **options(kind, max_new_tokens=20))
    with monkeypatch.context() as patch:
        patch.setattr(tiny.engine.engine._step, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    assert list(stream) == []
    assert stream.result.to_dict()["finish_reason"] == "interrupted"
    assert next(other)
    assert tiny.generate(kind[0], **options(kind, max_new_tokens=20)).token_ids == right
    for _ in other:
        pass
    assert other.result.token_ids == right


def test_ctrl_c_ends_the_wait_for_another_thread(tiny, monkeypatch):
    kind = KINDS[0]
    right = alone(tiny, 5, [kind])[kind]
    run, inside, go_on, found = tiny.engine.engine._step.run, threading.Event(), threading.Event(), []

    def slow(*arguments, **more):
        inside.set()
        go_on.wait(60)
        return run(*arguments, **more)

    monkeypatch.setattr(tiny.engine.engine._step, "run", slow)

    def generate():
        found.append(tiny.generate(kind[0], **options(kind, max_new_tokens=5)).token_ids)

    other = threading.Thread(target=generate, daemon=True)
    other.start()
    inside.wait(60)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            generate()
    finally:
        signal.signal(signal.SIGINT, before)
        go_on.set()
    assert time.monotonic() - began < 30
    other.join(60)
    generate()
    assert found == [right, right]


def test_ctrl_c_at_any_moment_never_blocks_the_next_generation(tiny):
    """Signals at some hundred moments of a generation, many of them between two statements of Python."""
    kind = KINDS[1]
    right = alone(tiny, 12, [kind])[kind]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = 0
    try:
        for delay in np.linspace(0.00005, 0.01, 150):
            try:
                timer = threading.Timer(
                    delay, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                )
                timer.start()
                tiny.generate(kind[0], **options(kind, max_new_tokens=12))
                timer.join()
                time.sleep(0.001)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted == 150
    run_threads(lambda: tiny.reset())
    assert tiny.generate(kind[0], **options(kind, max_new_tokens=12)).token_ids == right


def in_a_process(code, tiny_checkpoint, tmp_path):
    """The output of Python code in which ``model`` is loaded."""
    load = f"import os, sys, threading, time, speq\nmodel = speq.load({str(tiny_checkpoint)!r}, threads=2)\n"
    environment = {**os.environ, "SPEQ_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", load + code], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_forked_process_is_told_to_load_the_model_itself(tiny_checkpoint, tmp_path):
    code = """
right = model.generate("hi", max_new_tokens=9).token_ids
stream = model.stream("hi", max_new_tokens=9)
next(stream)
child = os.fork()
if not child:
    for use in (lambda: model.generate("hi"), lambda: next(stream), model.reset, lambda: model.engine.forward([1])):
        try:
            use()
        except speq.SpeqError as error:
            print(error)
    print(model.encode("hi") != [])
    again = speq.load(PATH, threads=2)
    print(again.generate("hi", max_new_tokens=9).token_ids == right, flush=True)
    del model, stream
    sys.exit(0)
print(os.waitpid(child, 0)[1], model.generate("hi", max_new_tokens=9).token_ids == right)
""".replace("PATH", repr(str(tiny_checkpoint)))
    *told, encoded, again, parent = in_a_process(code, tiny_checkpoint, tmp_path)
    assert len(told) == 4
    assert all("belongs to the process that this one was forked from" in line for line in told)
    assert (encoded, again, parent) == ("True", "True", "0 True")


def test_a_generation_in_a_daemon_thread_lets_the_interpreter_end(tiny_checkpoint, tmp_path):
    code = """
begun = threading.Event()
def work():
    while True:
        for _ in model.stream("hi", max_new_tokens=50, ignore_ends=True):
            begun.set()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
"""
    for _ in range(3):
        assert in_a_process(code, tiny_checkpoint, tmp_path) == []
