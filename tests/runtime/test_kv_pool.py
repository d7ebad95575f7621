"""The KV pool against a model of it: what each sequence holds, who may write where, and that no page is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from speq.errors import SpeqError
from speq.limits import PAGE
from speq.runtime.kv import KVPool

CONTEXT = 700
SEQUENCES = 12


def mark(tokens):
    """What a fake pass writes for the last of ``tokens``: it depends on the whole path, as keys and values do."""
    return np.float16(hash(tuple(tokens)) % 2039)


class Pool(RuleBasedStateMachine):
    """Opens, extends, cuts, forks and closes sequences at random, writing what a pass would write."""

    handles = Bundle("handles")

    def __init__(self):
        super().__init__()
        self.pool = KVPool(1, 1, 1, context=CONTEXT, sequences=SEQUENCES)
        self.open = {}  # handle -> tokens

    def write(self, handle, tokens, exact=True):
        pages = self.pool.make_room(handle, len(tokens))
        for slot, _ in enumerate(tokens, handle.length):
            path = [*handle.tokens, *tokens[: slot - handle.length + 1]]
            for plane in (self.pool.keys, self.pool.values):
                plane[pages[slot // PAGE], :, :, slot % PAGE] = mark(path)
        self.pool.extend(handle, tokens, exact=exact)

    @rule(target=handles, prompt=st.integers(1, 400), kind=st.integers(0, 2))
    def begin(self, prompt, kind):
        if len(self.open) == SEQUENCES:
            return self.pool.open(())  # its pages are never used
        tokens = [kind] * prompt
        handle = self.pool.open(tokens)
        assert handle.length < len(tokens)
        assert handle.tokens == tokens[: handle.length]
        self.write(handle, tokens[handle.length :])
        self.open[handle] = tokens
        return handle

    @rule(handle=handles, count=st.integers(1, 60), token=st.integers(0, 5), exact=st.booleans())
    def extend(self, handle, count, token, exact):
        if handle not in self.open or handle.length + count > CONTEXT:
            return
        self.write(handle, [token] * count, exact)
        self.open[handle] = self.open[handle] + [token] * count

    @rule(handle=handles, share=st.floats(0, 1))
    def truncate(self, handle, share):
        if handle in self.open:
            length = int(share * handle.length)
            self.pool.truncate(handle, length)
            self.open[handle] = self.open[handle][:length]

    @rule(target=handles, handle=handles)
    def fork(self, handle):
        if handle not in self.open or len(self.open) == SEQUENCES:
            return handle
        twin = self.pool.fork(handle)
        self.open[twin] = list(self.open[handle])
        return twin

    @rule(handle=consumes(handles), leave=st.booleans())
    def close(self, handle, leave):
        self.open.pop(handle, None)
        self.pool.close(handle, leave=leave)
        self.pool.close(handle, leave=leave)  # once more does no harm

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        for handle, tokens in self.open.items():
            assert handle.tokens == tokens
            assert handle.exact <= handle.length <= len(handle.pages) * PAGE
            for slot in {0, handle.length // 2, handle.length - 1} if tokens else ():
                page = handle.pages[slot // PAGE]
                for plane in (self.pool.keys, self.pool.values):
                    assert plane[page, 0, 0, slot % PAGE, 0] == mark(tokens[: slot + 1])

    def teardown(self):
        for handle in list(self.open):
            self.pool.close(handle)
        self.pool.forget()
        assert self.pool.used_pages == 0
        assert self.pool.free_pages == len(self.pool.keys)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


def filled(pool, tokens):
    handle = pool.open(tokens)
    pool.make_room(handle, len(tokens) - handle.length)
    pool.extend(handle, tokens[handle.length :], exact=True)
    return handle


def test_a_prompt_that_begins_alike_shares_pages_until_it_writes():
    pool = KVPool(1, 1, 1, context=CONTEXT, sequences=2)
    first = filled(pool, list(range(600)))
    second = pool.open([*range(300), 9, 9, 9])
    assert second.length == second.exact == 300
    assert second.pages == first.pages[:2]
    pages = pool.make_room(second, 3)
    assert pages[0] == first.pages[0]
    assert pages[1] not in first.pages
    assert pool.used_pages == 4


def test_what_was_drafted_is_not_shared():
    pool = KVPool(1, 1, 1, context=CONTEXT, sequences=2)
    first = filled(pool, list(range(20)))
    pool.make_room(first, 5)
    pool.extend(first, [20, 21, 22, 23, 24], exact=False)
    assert pool.open(list(range(25))).length == 20


def test_a_closed_sequence_leaves_its_text_until_pages_run_short():
    pool = KVPool(1, 1, 1, context=PAGE, sequences=1)
    pool.close(filled(pool, list(range(100))))
    again = pool.open(list(range(100)))
    assert again.length == 99
    pool.close(again)
    for _ in pool.keys:
        filled(pool, [7] * 100)
    assert pool.open(list(range(100))).length == 0
    with pytest.raises(SpeqError, match="no pages are left"):
        pool.make_room(pool.open(()), 1)


def test_what_closed_sequences_leave_is_bounded_and_the_last_one_stays_whole():
    pool = KVPool(1, 1, 1, context=100 * PAGE, sequences=4)
    long = [1] * (90 * PAGE)
    pool.close(filled(pool, long))
    assert pool.used_pages == 90
    assert pool.open(long).length == len(long) - 1
    for token in range(2, 60):
        pool.close(filled(pool, [token] * PAGE))
    pool.forget()
    assert pool.used_pages == 90  # of the one that is open
    for token in range(2, 60):
        pool.close(filled(pool, [token] * PAGE))
    assert pool.used_pages <= 90 + 33


def test_keep_makes_a_chain_of_a_path():
    pool = KVPool(1, 1, 1, context=CONTEXT, sequences=1)
    handle = filled(pool, [1] * (PAGE - 2))
    pages = pool.make_room(handle, 6)
    for row in range(6):
        slot = handle.length + row
        pool.keys[pages[slot // PAGE], :, :, slot % PAGE] = row
        pool.values[pages[slot // PAGE], :, :, slot % PAGE] = 10 + row
    pool.extend(handle, [10, 11, 12, 13, 14, 15], exact=True)
    pool.keep(handle, PAGE - 2, [0, 2, 5])
    assert handle.tokens[-3:] == [10, 12, 15]
    slots = [(pages[slot // PAGE], slot % PAGE) for slot in range(PAGE - 2, PAGE + 1)]
    assert [int(pool.keys[page, 0, 0, at, 0]) for page, at in slots] == [0, 2, 5]
    assert [int(pool.values[page, 0, 0, at, 0]) for page, at in slots] == [10, 12, 15]
    assert handle.length == handle.exact == PAGE + 1
    for path in ([1, 0], [0, 0], [0, 3]):
        with pytest.raises(ValueError, match="path"):
            pool.keep(handle, PAGE - 2, path)


def test_misuse():
    pool = KVPool(1, 1, 1, context=30, sequences=1)
    handle = pool.open(())
    with pytest.raises(SpeqError, match="31 tokens do not fit in the context of 30"):
        pool.make_room(handle, 31)
    with pytest.raises(ValueError, match="cannot cut 0 cached tokens to 1"):
        pool.truncate(handle, 1)
    pool.close(handle)
    with pytest.raises(ValueError, match="closed"):
        pool.make_room(handle, 1)
