"""The KV pool: keys and values of many sequences, as float16, in pages that sequences may share.

A page holds as many positions as attention takes at a time, so that paging changes no sum. Sequences that begin alike
share pages; who writes into a shared one gets a copy of it first. What a closed sequence leaves behind is kept for
those who begin alike later, and given up, oldest first, when pages run short or when it becomes much.

Addresses for all pages are reserved at once; memory is taken as positions are written, and handed back with the pages.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import numpy as np

from speq.errors import SpeqError
from speq.limits import PAGE

_LEFT = 32  # pages that closed sequences may keep together, apart from the one that was closed last
_SPARE = 1  # pages beyond its end that a sequence keeps when it is cut, for the next draft


class KVHandle:
    """One sequence in a pool; the pool alone changes it.

    Attributes:
        tokens: of the slots that are filled.
        exact: how many of them, from the first on, were computed at the level that defines the text.
        pages: page numbers in the order of the slots; as many as are filled, or more.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.exact = 0
        self.pages: list[int] = []
        self.closed = False

    @property
    def length(self) -> int:
        """Slots that are filled."""
        return len(self.tokens)


class KVPool:
    """Pages of keys (after rotary embedding) and values.

    Attributes:
        keys, values: float16 ``[pages, layers, kv_heads, PAGE, head_dim]``, C-contiguous, zero at first.
        context: most tokens of a sequence.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, *, context: int, sequences: int = 1) -> None:
        """Reserve the addresses for so many sequences of full length.

        Raises:
            SpeqError: the system refuses to reserve that much.
        """
        self.context = context
        # One page more for each, since a sequence may hold a page that it shares beside its own copy of it.
        pages = sequences * (-(-context // PAGE) + _SPARE + 1)
        shape = (pages, layers, kv_heads, PAGE, head_dim)
        try:
            self._blocks = [_reserve(shape) for _ in range(2)]
        except (OSError, OverflowError):
            size = 4 * np.prod(shape, dtype=np.float64) / 2**30
            raise SpeqError(
                f"no memory for {sequences} contexts of {context} tokens ({size:.1f} GiB); choose a shorter one"
            ) from None
        self.keys, self.values = (
            np.frombuffer(block, np.float16, int(np.prod(shape))).reshape(shape) for block in self._blocks
        )
        self._holders = np.zeros(pages, np.int32)  # sequences that hold a page, open and left ones
        self._free = list(range(pages))[::-1]
        self._open: list[KVHandle] = []
        self._left: list[KVHandle] = []  # closed sequences whose pages are kept, the oldest first

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds, or only closed sequences."""
        held = {page for handle in self._open for page in handle.pages}
        return len(self._holders) - len(held)

    @property
    def used_pages(self) -> int:
        """Pages that hold something."""
        return int(np.count_nonzero(self._holders))

    def open(self, prompt: Sequence[int] = ()) -> KVHandle:
        """A new sequence that holds as much of ``prompt`` as another one has computed exactly, but its last token."""
        handle, donor, shared = KVHandle(), None, 0
        for other in self._open + self._left:
            common = _common(other.tokens[: other.exact], prompt[: len(prompt) - 1])
            if common > shared:
                donor, shared = other, common
        if donor is not None:
            handle.tokens, handle.exact = list(prompt[:shared]), shared
            for page in donor.pages[: -(-shared // PAGE)]:
                self._hold(handle, page)
            if donor in self._left:  # used again, so it is the youngest
                self._left.remove(donor)
                self._left.append(donor)
        self._open.append(handle)
        return handle

    def make_room(self, handle: KVHandle, count: int) -> list[int]:
        """The pages for the filled slots and ``count`` more, which are then the sequence's own to write.

        Raises:
            SpeqError: the sequence would be longer than the context, or there are no pages left.
        """
        self._check_open(handle)
        end = handle.length + count
        if end > self.context:
            raise SpeqError(f"{end} tokens do not fit in the context of {self.context}; shorten the input")
        for index in range(handle.length // PAGE, min(len(handle.pages), -(-end // PAGE))):
            if self._holders[handle.pages[index]] > 1:
                self._copy(handle, index)
        while len(handle.pages) * PAGE < end:
            self._hold(handle, self._take())
        return handle.pages[: -(-end // PAGE)]

    def extend(self, handle: KVHandle, tokens: Sequence[int], *, exact: bool) -> None:
        """Note that a pass has filled the next slots with ``tokens``."""
        if exact and handle.exact == handle.length:
            handle.exact += len(tokens)
        handle.tokens += tokens

    def truncate(self, handle: KVHandle, length: int) -> None:
        """Forget all slots from ``length`` on."""
        self._check_open(handle)
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot cut {handle.length} cached tokens to {length}")
        del handle.tokens[length:]
        handle.exact = min(handle.exact, length)
        for page in self._beyond(handle, -(-length // PAGE) + _SPARE):
            self._release(page)

    def keep(self, handle: KVHandle, start: int, path: Sequence[int]) -> None:
        """Make a chain of a tree: of the rows from slot ``start`` on, those on ``path`` stay, in order.

        Args:
            path: ascending rows, each the child of the one before.
        """
        self._check_open(handle)
        if list(path) != sorted(set(path)) or (path and not 0 <= path[0] <= path[-1] < handle.length - start):
            raise ValueError("a path is made of ascending rows of the tree")
        for depth, row in enumerate(path):
            if row != depth:
                self._move(handle, start + row, start + depth)
                handle.tokens[start + depth] = handle.tokens[start + row]
        self.truncate(handle, start + len(path))

    def fork(self, handle: KVHandle) -> KVHandle:
        """Another sequence that holds what this one holds."""
        self._check_open(handle)
        twin = KVHandle()
        twin.tokens, twin.exact = list(handle.tokens), handle.exact
        for page in handle.pages[: -(-handle.length // PAGE)]:
            self._hold(twin, page)
        self._open.append(twin)
        return twin

    def close(self, handle: KVHandle, *, leave: bool = True) -> None:
        """End a sequence; its exact part is left for others that begin alike, unless ``leave`` is false."""
        if handle.closed:
            return
        if handle in self._open:
            self._open.remove(handle)
        del handle.tokens[handle.exact :]
        for page in self._beyond(handle, -(-handle.exact // PAGE) if leave else 0):
            self._release(page)
        handle.closed = True
        if handle.pages:
            self._left.append(handle)
            while len(self._left) > 1 and self._kept() > _LEFT:
                self._give_up()

    def forget(self) -> None:
        """Give up what closed sequences have left."""
        while self._left:
            self._give_up()

    def settle(self) -> None:
        """After an exception that may have come in the middle of anything: count again who holds which page."""
        held = np.zeros(len(self._holders), np.int32)
        for handle in self._open + self._left:
            handle.exact = min(handle.exact, handle.length)
            np.add.at(held, handle.pages, 1)
        for page in np.flatnonzero((self._holders > 0) & (held == 0)):
            self._empty(int(page))
        self._holders = held
        self._free = [int(page) for page in np.flatnonzero(held == 0)[::-1]]

    def _check_open(self, handle: KVHandle) -> None:
        if handle.closed:
            raise ValueError("the sequence is closed")

    def _hold(self, handle: KVHandle, page: int) -> None:
        self._holders[page] += 1
        handle.pages.append(page)

    def _take(self) -> int:
        while not self._free and self._left:
            self._give_up()
        if not self._free:
            raise SpeqError("no pages are left in the KV cache: run fewer sequences at once")
        return self._free.pop()

    def _give_up(self) -> None:
        for page in self._left.pop(0).pages:
            self._release(page)

    def _kept(self) -> int:
        """Pages of closed sequences, without the one that was closed last."""
        return len({page for handle in self._left[:-1] for page in handle.pages})

    def _beyond(self, handle: KVHandle, count: int) -> list[int]:
        """Takes away and returns the pages of a sequence after the first ``count``."""
        pages = handle.pages[count:]
        del handle.pages[count:]
        return pages

    def _release(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free.append(page)
            self._empty(page)

    def _empty(self, page: int) -> None:
        """Give the memory of a page back."""
        for block in self._blocks:
            _hand_back(block, page * self.keys[0].nbytes, self.keys[0].nbytes)

    def _copy(self, handle: KVHandle, index: int) -> None:
        """Give a sequence its own copy of a page that it shares."""
        filled, shared = handle.length - index * PAGE, handle.pages[index]
        own = self._take()
        for plane in (self.keys, self.values):
            plane[own, :, :, :filled] = plane[shared, :, :, :filled]
        self._holders[own] += 1
        self._release(shared)
        handle.pages[index] = own

    def _move(self, handle: KVHandle, source: int, target: int) -> None:
        """Copy a slot; both are the sequence's own, since a pass has just written from there on."""
        pages = handle.pages
        for plane in (self.keys, self.values):
            plane[pages[target // PAGE], :, :, target % PAGE] = plane[pages[source // PAGE], :, :, source % PAGE]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many items two sequences begin with alike."""
    count = min(len(a), len(b))
    if count == 0 or a[0] != b[0]:
        return 0
    differing = np.flatnonzero(np.array(a[:count]) != np.array(b[:count]))
    return int(differing[0]) if len(differing) else count


def _reserve(shape: tuple[int, ...]) -> mmap.mmap:
    count = int(np.prod(shape, dtype=object))
    if hasattr(mmap, "MAP_PRIVATE"):
        # Without "noreserve" Linux may count the whole reservation as used.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        block = mmap.mmap(-1, 2 * count, flags=flags)
    else:
        block = mmap.mmap(-1, 2 * count)
    # Each layer and head has a stretch of its own: a huge page for the first position of every one would take hundreds
    # of megabytes at once. Kernels without huge pages refuse the wish.
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_NOHUGEPAGE)
    return block


def _hand_back(block: mmap.mmap, start: int, size: int) -> None:
    """Give the memory of a range back to the system, where it can be told so; it reads as zeros then."""
    if hasattr(mmap, "MADV_DONTNEED"):
        begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            block.madvise(mmap.MADV_DONTNEED, begin, end - begin)
