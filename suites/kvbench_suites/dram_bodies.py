"""Copies, gathers and scatters in host memory: the work behind the `dram` cases.

Threads are pinned to cores and started before the clock. The C library's memcpy moves contiguous
ranges and NumPy's take and assignment move pages; both release the GIL. Only the worker process
imports this.
"""

import ctypes
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Context, Observed
from kvbench.measure.pattern import SECTOR_BYTES, Pattern, digest
from kvbench.store.posix import Bytes, mapped_buffer
from kvbench_suites.dram import MEMORY_PATHS
from kvbench_suites.numa import bind_memory

ROTATION_CACHES = 4  # buffers rotate over this many times the last-level cache
ASSUMED_CACHE_BYTES = 64 * 2**20  # where the machine record does not know its last-level cache
POOL_BYTES = 512 * 2**20  # paged memory that pages are gathered from, if memory allows
STAGING_BYTES = 64 * 2**20  # a step moves about this much
MEMORY_SHARE = 0.5  # of what is available; more would push the machine into reclaim
STEP_TIMEOUT_S = 60.0

_libc = ctypes.CDLL(None)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.restype = ctypes.c_void_p


class Team:
    """`count` threads, each pinned to a core, that do one part of every step.

    With one thread the caller does the work itself: a hand-over would be part of the time.
    """

    def __init__(self, cores: list[int], part: Callable[[int], object]) -> None:
        self._cores = cores
        self._part = part
        self._failure: BaseException | None = None
        if len(cores) == 1:
            os.sched_setaffinity(0, {cores[0]})
            return
        self._begin = threading.Barrier(len(cores), timeout=STEP_TIMEOUT_S)
        self._end = threading.Barrier(len(cores), timeout=STEP_TIMEOUT_S)
        self._ending = False
        os.sched_setaffinity(0, {cores[0]})  # the caller is the first of the team
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(1, len(cores))
        ]
        for thread in self._threads:
            thread.start()

    def step(self) -> None:
        """All parts once; returns when the last is done."""
        if len(self._cores) == 1:
            self._part(0)
            return
        self._begin.wait()
        self._part(0)
        self._end.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Let the threads go."""
        if len(self._cores) > 1:
            self._ending = True
            self._begin.wait()
            for thread in self._threads:
                thread.join(STEP_TIMEOUT_S)

    def _run(self, number: int) -> None:
        os.sched_setaffinity(0, {self._cores[number]})  # 0 is the calling thread on Linux
        while True:
            try:
                # No limit here: the caller sets up and checks data between steps.
                self._begin.wait(timeout=None)
            except threading.BrokenBarrierError:
                return
            if self._ending:
                return
            try:
                self._part(number)
            except BaseException as failure:  # noqa: BLE001  raised again by step
                self._failure = failure
            self._end.wait()


class _MemoryBody(ABC):
    """What copy, gather and scatter share: memory of the kind asked for, and the team."""

    clock: ClassVar[str] = "host"
    _team: Team | None = None

    def set_up(self, context: Context) -> None:
        """Allocate on the memory node, fill, start the team."""
        self._context = context
        self._pattern = Pattern(context.seed)
        cores = team_cores(context)
        self._threads = len(cores)
        node = context.count("memory_node")
        os.sched_setaffinity(0, {cores[0]})  # first touch decides the NUMA node of a page
        with bind_memory(node if node >= 0 else None):
            self._allocate(context)
        self._turn = 0
        self._team = Team(cores, self._part)

    def step(self) -> int:
        """One sample of work."""
        if self._team is None:
            raise AssertionError("the body was not set up")
        self._turn += 1
        self._team.step()
        return self._step_bytes

    def observed(self) -> Observed:
        """The kind of memory, which was asserted when it was allocated."""
        return Observed(path=MEMORY_PATHS[self._context.word("memory")])

    def tear_down(self) -> None:
        """Let the threads go; the memory goes with the process."""
        if self._team is not None:
            self._team.close()

    _step_bytes: int

    @abstractmethod
    def _allocate(self, context: Context) -> None:
        """Make and fill the memory."""

    @abstractmethod
    def _part(self, number: int) -> None:
        """One thread's share of a step."""

    def _memory(self, size_bytes: int) -> Bytes:
        """Touched memory of the kind that was asked for: uint8 [size_bytes]."""
        area = allocate(self._context.word("memory"), size_bytes)
        area[:: os.sysconf("SC_PAGE_SIZE")] = 1
        return area

    def _budget(self, wanted_bytes: int, least_bytes: int, areas: int) -> int:
        """What each of `areas` areas may take.

        Raises:
            TierUnavailableError: not even the least is available.
        """
        available = self._context.machine.usable_memory_bytes
        if available is None:
            return max(wanted_bytes, least_bytes)
        share = int(available * MEMORY_SHARE) // areas
        if share < least_bytes:
            raise TierUnavailableError(
                f"{areas} areas of {least_bytes} bytes are needed and only {available} bytes of "
                "memory are available: use smaller blocks"
            )
        return max(least_bytes, min(wanted_bytes, share))


class CopyBlock(_MemoryBody):
    """Copies one contiguous range after another from one area to another, by memcpy."""

    def _allocate(self, context: Context) -> None:
        block_bytes = context.count("block_bytes")
        wanted = max(block_bytes, ROTATION_CACHES * cache_bytes(context))
        self._slots = max(1, self._budget(wanted, block_bytes, areas=2) // block_bytes)
        self._step_bytes = block_bytes
        self._source = self._memory(self._slots * block_bytes)
        self._target = self._memory(self._slots * block_bytes)
        fill(self._pattern, self._source)
        self._source_address = self._source.ctypes.data
        self._target_address = self._target.ctypes.data

    def _part(self, number: int) -> None:
        first, last = share_of(self._step_bytes, number, self._threads, align=64)
        at = (self._turn % self._slots) * self._step_bytes + first
        _libc.memcpy(self._target_address + at, self._source_address + at, last - first)

    def verify(self) -> int:
        """Every range that was copied equals its source, by checksum."""
        checked = 0
        for turn in range(max(0, self._turn - self._slots) + 1, self._turn + 1):
            at = (turn % self._slots) * self._step_bytes
            got = self._target[at : at + self._step_bytes]
            if digest(got) != digest(self._source[at : at + self._step_bytes]):
                raise CorruptDataError(f"a copied range of {self._step_bytes} bytes differs")
            checked += self._step_bytes
        return checked


class _PagedBody(_MemoryBody):
    """A paged KV cache beside a staging buffer of whole blocks.

    The cache is laid out as engines do it: for each layer, K and V apart, an array of pages, one
    for each block. So the pages of one block lie far from each other, and a block is gathered
    piece by piece.
    """

    def _allocate(self, context: Context) -> None:
        page_bytes = context.count("page_bytes")
        block_bytes = context.count("block_bytes")
        self._pages_per_block = block_bytes // page_bytes
        pool = self._budget(POOL_BYTES, 2 * block_bytes, areas=2)
        self._blocks = max(2, pool // block_bytes)
        batch = max(1, min(self._blocks // 2, STAGING_BYTES // block_bytes))
        self._step_bytes = batch * block_bytes
        self._cache = self._memory(self._blocks * block_bytes).reshape(-1, page_bytes)
        self._staging = self._memory(self._step_bytes).reshape(-1, page_bytes)
        self._batches = self._page_lists(context, batch)

    def _page_lists(self, context: Context, batch: int) -> list[NDArray[np.intp]]:
        """Rows of the cache that each step moves: a shuffled pass over all blocks."""
        order = np.random.default_rng((context.seed, context.process)).permutation(self._blocks)
        pieces = np.arange(self._pages_per_block) * self._blocks
        whole = len(order) // batch * batch
        return [
            (blocks[:, None] + pieces[None, :]).ravel().astype(np.intp)
            for blocks in order[:whole].reshape(-1, batch)
        ]

    @property
    def _rows(self) -> NDArray[np.intp]:
        return self._batches[self._turn % len(self._batches)]

    def _check(self, got: Bytes, want: Bytes, rows: NDArray[np.intp], verb: str) -> int:
        for number, row in enumerate(rows.tolist()):
            if digest(got[number]) != digest(want[number]):
                raise CorruptDataError(f"page {row} differs after the {verb}")
        return len(rows) * int(got.shape[1])


class GatherPages(_PagedBody):
    """Gathers the pages of scattered blocks into the staging buffer."""

    def _allocate(self, context: Context) -> None:
        super()._allocate(context)
        fill(self._pattern, self._cache.reshape(-1))

    def _part(self, number: int) -> None:
        rows = self._rows
        first, last = share_of(len(rows), number, self._threads)
        # mode="clip" lets NumPy write straight into `out`; with "raise" it would buffer.
        np.take(self._cache, rows[first:last], axis=0, out=self._staging[first:last], mode="clip")

    def verify(self) -> int:
        """Each page of the last step equals its source, by checksum."""
        return self._check(self._staging, self._cache[self._rows], self._rows, "gather")


class ScatterPages(_PagedBody):
    """Scatters the staging buffer into the pages of scattered blocks."""

    def _allocate(self, context: Context) -> None:
        super()._allocate(context)
        fill(self._pattern, self._staging.reshape(-1))

    def _part(self, number: int) -> None:
        rows = self._rows
        first, last = share_of(len(rows), number, self._threads)
        self._cache[rows[first:last]] = self._staging[first:last]

    def verify(self) -> int:
        """Each page that the last step wrote equals what was scattered, by checksum."""
        return self._check(self._cache[self._rows], self._staging, self._rows, "scatter")


def allocate(memory: str, size_bytes: int) -> Bytes:
    """Memory of a kind: uint8 [size_bytes].

    Raises:
        TierUnavailableError: this machine cannot lock that much, or has no CUDA to pin with.
    """
    if memory == "pageable":
        return mapped_buffer(size_bytes)
    if memory == "locked":
        return mapped_buffer(size_bytes, huge_pages=True, lock=True)
    import torch  # noqa: PLC0415  only pinned memory needs it

    if not torch.cuda.is_available():
        raise TierUnavailableError("memory is pinned by CUDA, and torch sees no CUDA device")
    pinned = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    if not pinned.is_pinned():
        raise TierUnavailableError(f"torch did not pin {size_bytes} bytes")
    return pinned.numpy()


def fill(pattern: Pattern, area: Bytes) -> None:
    """Seeded bytes into uint8 [n]; a tail shorter than a sector is left as it is."""
    whole = area.nbytes // SECTOR_BYTES * SECTOR_BYTES
    pattern.fill(area[:whole], 0)


def share_of(total: int, number: int, count: int, *, align: int = 1) -> tuple[int, int]:
    """The range of `total` that thread `number` of `count` takes, its edges aligned."""
    edges = [total * n // count // align * align for n in range(count)] + [total]
    return edges[number], edges[number + 1]


def cache_bytes(context: Context) -> int:
    """Last-level cache of the machine."""
    return context.machine.cpu.l3_bytes or ASSUMED_CACHE_BYTES


def team_cores(context: Context) -> list[int]:
    """The cores that the team runs on: of the CPU node asked for, within what we may use.

    Asks the kernel what this thread may use, so it is called before anything is pinned.
    """
    allowed = sorted(os.sched_getaffinity(0))
    node = context.count("cpu_node")
    if node >= 0:
        of_node = {
            cpu
            for numa_node in context.machine.numa_nodes
            if numa_node.index == node
            for cpu in numa_node.cpus
        }
        allowed = [core for core in allowed if core in of_node]
    threads = context.count("threads")
    if len(allowed) < threads:
        raise TierUnavailableError(
            f"{threads} threads need as many cores and this process may use {len(allowed)}"
            + (f" of NUMA node {node}" if node >= 0 else "")
        )
    return allowed[:threads]
