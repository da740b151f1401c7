"""Copies, gathers and scatters in host memory: the work behind the `dram` cases.

The C library's memcpy moves contiguous ranges and NumPy's take and assignment move pages; both
release the GIL. A step is several turns, long enough for the hand-over between threads not to be
part of the figure; turns rotate over more memory than the last-level cache holds. Only the worker
process imports this.
"""

import ctypes
import os
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Context, Observed
from kvbench.measure.evidence import Mapping, mapping_of, node_share
from kvbench.measure.pattern import SECTOR_BYTES, Pattern, digest
from kvbench.store.posix import Bytes, mapped_buffer
from kvbench_suites.dram import MEMORY_PATHS
from kvbench_suites.numa import bind_memory
from kvbench_suites.team import Team, nodes_of, share_of, team_cores

ROTATION_CACHES = 4  # buffers rotate over this many times the last-level cache
ASSUMED_CACHE_BYTES = 64 * 2**20  # where the machine record does not know its last-level cache
POOL_BYTES = 512 * 2**20  # paged memory that pages are gathered from, at least, if memory allows
TURN_BYTES = 64 * 2**20  # a gather moves about this much; a copy of more is split between threads
# Two barriers between threads take 0.1 ms and more; with four turns a thread they are below 1 %.
TURNS_PER_THREAD = 4
MEMORY_SHARE = 0.5  # of what is available; more would push the machine into reclaim
MOST = 0.9  # share of an area that must be in huge pages, or on its node, to be called so

_libc = ctypes.CDLL(None)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.restype = ctypes.c_void_p


class _MemoryBody(ABC):
    """What copy, gather and scatter share: memory of the kind asked for, and the team."""

    clock: ClassVar[str] = "host"
    timeline: ClassVar[dict[str, str]] = {"_move": "copy"}  # for kvbench.profile
    _team: Team | None = None
    _turn_bytes: int  # payload of one turn, all threads together

    def set_up(self, context: Context) -> None:
        """Allocate on the memory node, fill, start the team."""
        self._context = context
        self._pattern = Pattern(context.seed)
        self._areas: list[Bytes] = []
        cores = team_cores(context)
        self._threads = len(cores)
        node = context.count("memory_node")
        nodes = [node] if node >= 0 else nodes_of(cores, context)
        os.sched_setaffinity(0, {cores[0]})  # first touch decides the NUMA node of a page,
        with bind_memory(*nodes):  # and one thread touches all: spread it where the team is
            self._allocate(context)
        least = TURN_BYTES * (1 if self._threads == 1 else TURNS_PER_THREAD * self._threads)
        self._turns_per_step = -(-least // self._turn_bytes)
        self._next_turn = 0
        self._step_turns = range(0)
        self._team = Team(cores, self._part)

    def step(self) -> int:
        """One sample of work."""
        return self._run_turns(self._turns_per_step)

    def observed(self) -> Observed:
        """The kind of memory as the kernel shows it, and where it lies."""
        memory, node = self._context.word("memory"), self._context.count("memory_node")
        path = MEMORY_PATHS[memory]
        found = [mapping_of(area.ctypes.data, area.nbytes) for area in self._areas]
        if memory == "locked":
            path = _locked_path([mapping for mapping in found if mapping is not None]) or path
        shares = [node_share(area.ctypes.data, node) for area in self._areas] if node >= 0 else []
        if any(share is not None and share < MOST for share in shares):
            path += f", not all on node {node}"
        evidence = {
            "huge_page_share": min((m.huge_share for m in found if m is not None), default=None),
            "locked_share": min((m.locked_share for m in found if m is not None), default=None),
            "node_share": min((share for share in shares if share is not None), default=None),
        }
        return Observed(path=path, evidence=evidence)

    def tear_down(self) -> None:
        """Let the threads go; the memory goes with the process."""
        if self._team is not None:
            self._team.close()

    @abstractmethod
    def _allocate(self, context: Context) -> None:
        """Make and fill the memory."""

    @abstractmethod
    def _move(self, number: int, turn: int) -> None:
        """One thread's share of one turn. Threads do not wait for each other between turns."""

    def _part(self, number: int) -> None:
        for turn in self._step_turns:
            self._move(number, turn)

    def _run_turns(self, count: int) -> int:
        if self._team is None:
            raise AssertionError("the body was not set up")
        self._step_turns = range(self._next_turn, self._next_turn + count)
        self._next_turn += count
        self._team.step()
        return count * self._turn_bytes

    def _memory(self, size_bytes: int) -> Bytes:
        """Touched memory of the kind that was asked for: uint8 [size_bytes]."""
        area = allocate(self._context.word("memory"), size_bytes)
        area[:: os.sysconf("SC_PAGE_SIZE")] = 1
        self._areas.append(area)
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
    """Copies contiguous blocks from one area to another, by memcpy.

    A large block is split between the threads; of small ones each thread copies its own.
    """

    def _allocate(self, context: Context) -> None:
        self._block_bytes = context.count("block_bytes")
        self._split = self._threads > 1 and self._block_bytes >= TURN_BYTES
        self._turn_bytes = self._block_bytes * (1 if self._split else self._threads)
        wanted = max(self._turn_bytes, ROTATION_CACHES * cache_bytes(context))
        area_bytes = self._budget(wanted, self._turn_bytes, areas=2)
        self._slots = area_bytes // self._turn_bytes
        self._source = self._memory(self._slots * self._turn_bytes)
        self._target = self._memory(self._slots * self._turn_bytes)
        fill(self._pattern, self._source)
        self._source_address = self._source.ctypes.data
        self._target_address = self._target.ctypes.data

    def _move(self, number: int, turn: int) -> None:
        first, last = number * self._block_bytes, (number + 1) * self._block_bytes
        if self._split:
            first, last = share_of(self._block_bytes, number, self._threads, align=64)
        at = (turn % self._slots) * self._turn_bytes + first
        _libc.memcpy(self._target_address + at, self._source_address + at, last - first)

    def verify(self) -> int:
        """What the timed copies left equals its source; then other bytes are copied and compared.

        Later passes over the areas copy the same bytes, so the first check alone would not see
        that they did nothing.
        """
        checked = self._check(min(self._next_turn, self._slots))
        fill(self._pattern, self._source, self._source.nbytes)
        self._next_turn = 0
        self._run_turns(self._slots)
        return checked + self._check(self._slots)

    def _check(self, slots: int) -> int:
        for slot in range(slots):
            part = slice(slot * self._turn_bytes, (slot + 1) * self._turn_bytes)
            if digest(self._target[part]) != digest(self._source[part]):
                raise CorruptDataError(f"a copied range of {self._turn_bytes} bytes differs")
        return slots * self._turn_bytes


class _PagedBody(_MemoryBody):
    """A paged KV cache beside staging buffers of whole blocks.

    The cache is laid out as engines do it: for each layer, K and V apart, an array of pages, one
    for each block. So the pages of one block lie far from each other, and a block is gathered
    piece by piece.
    """

    def _allocate(self, context: Context) -> None:
        page_bytes, block_bytes = context.count("page_bytes"), context.count("block_bytes")
        rotation = ROTATION_CACHES * cache_bytes(context)
        pool = self._budget(max(POOL_BYTES, rotation), 2 * block_bytes, areas=2)
        self._blocks = max(2, pool // block_bytes)
        batch = max(1, min(self._blocks // 2, TURN_BYTES // block_bytes))
        self._turn_bytes = batch * block_bytes
        buffers = max(1, min(pool, rotation + self._turn_bytes - 1) // self._turn_bytes)
        self._cache = self._memory(self._blocks * block_bytes).reshape(-1, page_bytes)
        staging = self._memory(buffers * self._turn_bytes)
        self._staging = staging.reshape(buffers, -1, page_bytes)
        self._batches = self._page_lists(context, batch, block_bytes // page_bytes)

    def _page_lists(
        self, context: Context, batch: int, pages_per_block: int
    ) -> list[NDArray[np.intp]]:
        """Rows of the cache that each turn moves: a shuffled pass over all blocks."""
        order = np.random.default_rng((context.seed, context.process)).permutation(self._blocks)
        pieces = np.arange(pages_per_block) * self._blocks
        whole = len(order) // batch * batch
        return [
            (blocks[:, None] + pieces[None, :]).ravel().astype(np.intp)
            for blocks in order[:whole].reshape(-1, batch)
        ]

    def _at(self, turn: int) -> tuple[NDArray[np.intp], Bytes]:
        """The rows of a turn and its staging buffer."""
        return self._batches[turn % len(self._batches)], self._staging[turn % len(self._staging)]

    @abstractmethod
    def _prepare_check(self) -> None:
        """Make sure that what is compared next cannot be left from before."""

    def verify(self) -> int:
        """What the last turn left, then one more pass over all blocks, each page by checksum."""
        checked = self._check(self._next_turn - 1)
        self._prepare_check()
        for _ in self._batches:
            self._run_turns(1)
            checked += self._check(self._next_turn - 1)
        return checked

    def _check(self, turn: int) -> int:
        rows, staging = self._at(turn)
        for number, row in enumerate(rows.tolist()):
            if digest(staging[number]) != digest(self._cache[row]):
                raise CorruptDataError(f"page {row} differs from its copy in the staging buffer")
        return staging.nbytes


class GatherPages(_PagedBody):
    """Gathers the pages of scattered blocks into the staging buffer."""

    def _allocate(self, context: Context) -> None:
        super()._allocate(context)
        fill(self._pattern, self._cache.reshape(-1))

    def _move(self, number: int, turn: int) -> None:
        rows, staging = self._at(turn)
        first, last = share_of(len(rows), number, self._threads)
        # mode="clip" lets NumPy write straight into `out`; with "raise" it would buffer.
        np.take(self._cache, rows[first:last], axis=0, out=staging[first:last], mode="clip")

    def _prepare_check(self) -> None:
        self._staging[:] = 0


class ScatterPages(_PagedBody):
    """Scatters the staging buffer into the pages of scattered blocks."""

    def _allocate(self, context: Context) -> None:
        super()._allocate(context)
        fill(self._pattern, self._staging.reshape(-1))

    def _move(self, number: int, turn: int) -> None:
        rows, staging = self._at(turn)
        first, last = share_of(len(rows), number, self._threads)
        self._cache[rows[first:last]] = staging[first:last]

    def _prepare_check(self) -> None:
        fill(self._pattern, self._staging.reshape(-1), self._staging.nbytes)


def _locked_path(mappings: list[Mapping]) -> str | None:
    """What locked memory turned out to be; None where the kernel does not show it."""
    if not mappings:
        return None
    if min(mapping.locked_share for mapping in mappings) < MOST:
        return "not locked"
    huge = min(mapping.huge_share for mapping in mappings)
    return None if huge >= MOST else f"mlock, {huge:.0%} in huge pages"


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


def fill(pattern: Pattern, area: Bytes, position_bytes: int = 0) -> None:
    """Seeded bytes into uint8 [n], whose tail may be shorter than a sector.

    They are those at `position_bytes`, rounded up to a sector, of the pattern.
    """
    first = -(-position_bytes // SECTOR_BYTES) * SECTOR_BYTES
    whole = area.nbytes // SECTOR_BYTES * SECTOR_BYTES
    pattern.fill(area[:whole], first)
    sector = np.empty(SECTOR_BYTES, dtype=np.uint8)
    pattern.fill(sector, first + whole)
    area[whole:] = sector[: area.nbytes - whole]


def cache_bytes(context: Context) -> int:
    """Last-level cache of the machine."""
    return context.machine.cpu.l3_bytes or ASSUMED_CACHE_BYTES
