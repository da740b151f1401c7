"""Work through the API of a tiered store: the bodies behind the `store` cases.

Each process has a store of its own. It is filled before the clock starts with blocks of the
run's pattern; what a get delivers is recognised at once by the stamps of its first and last sector,
and compared whole after the clock has stopped. Only the worker process imports this.
"""

import hashlib
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.pattern import SECTOR_BYTES, Pattern, digest
from kvbench.measure.result import Caution
from kvbench.measure.stream import Lanes
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.drives import capacity_for
from kvbench.store.options import Options
from kvbench.store.posix import mapped_buffer
from kvbench.store.spans import Spans
from kvbench.store.store import TieredStore
from kvbench_suites.store import PATHS

FILL_BYTES = 64 * 2**20  # put at a time while the store is filled
MEMORY_SHARE = 0.3  # of what is available, for tiers in memory
SPARE_SHARE = 8  # a drive has one slot in so many to spare: blocks are evicted by the batch
REMEMBERED = 64  # requests of a lane that are read back after puts
WORD_BYTES = 8
KEY_BYTES = 32


class _OnStore:
    """What all share: a store of one process, with blocks in the tier that is asked for."""

    clock: ClassVar[str] = "host"
    parts = 1
    least_blocks = 64
    _store: TieredStore | None = None
    _folder: Path | None = None

    def set_up(self, context: Context) -> None:
        """Make the store and fill it."""
        self._context = context
        self._tier = context.word("tier")
        self._layout = Layout(context.count("block_bytes"), self._parts_of(context))
        self._pattern = Pattern(context.seed)
        self._blocks = self._capacity(context)
        self._keys = [_key(context, f"block {number}") for number in range(self._blocks)]
        self._store = open_store(self._config(context))
        self._fill()

    def spans_into(self, spans: Spans) -> None:
        """The store tells of its requests there; for `kvbench profile`."""
        self._running_store.spans_into(spans)

    def watch(self) -> Watch | None:
        """The store's file and the counters of the device below it."""
        storage = self._context.machine.storage
        if self._tier != "nvme" or self._folder is None:
            return None
        stat_path = Path(storage.stat_path) if storage and storage.stat_path else None
        if storage is not None and storage.filesystem == "btrfs":
            stat_path = None  # it may lie on several drives, and only one of them is known
        files = (self._folder / "blocks.kvb",)
        return Watch(files=files, stat_path=stat_path, direction=self.direction)

    direction: ClassVar[str] = "read"

    def observed(self) -> Observed:
        """The tier, as the store's facts tell it."""
        facts = self._running_store.stats().tiers[self._tier].facts
        path = PATHS[self._tier]
        cautions: tuple[Caution, ...] = ()
        if self._tier == "nvme" and not facts["direct_io"]:
            path = "the store's drive, buffered"
        if self._tier == "dram" and str(facts["memory"]).startswith("pageable"):
            cautions = (
                Caution(
                    code="pageable",
                    message=f"the store's memory is {facts['memory']}",
                    fix="ulimit -l unlimited  # as root, or LimitMEMLOCK=infinity",
                ),
            )
        return Observed(path=path, evidence=dict(facts), cautions=cautions)

    def tear_down(self) -> None:
        """Close the store and remove its directory."""
        if self._store is not None:
            self._store.close(flush=False)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _running_store(self) -> TieredStore:
        if self._store is None:
            raise AssertionError("the store was not opened")
        return self._store

    def _parts_of(self, context: Context) -> int:  # noqa: ARG002  those with layers look
        return 1

    def _capacity(self, context: Context) -> int:
        """Blocks that the data of a run make, as far as memory allows."""
        size_bytes = context.plan.data_bytes
        if self._tier != "nvme":
            available = context.machine.memory.available_bytes
            size_bytes = min(size_bytes, int((available or size_bytes) * MEMORY_SHARE))
        blocks = size_bytes // self._layout.block_bytes
        if blocks < self.least_blocks:
            raise TierUnavailableError(
                f"{size_bytes} bytes hold {blocks} blocks of {self._layout.block_bytes} bytes and "
                f"this case needs {self.least_blocks}: use a larger --data"
            )
        return int(blocks)

    def _config(self, context: Context) -> StoreConfig:
        layout, blocks = self._layout, self._blocks
        options = Options(promotion="never", demotion="never")
        size_bytes = blocks * layout.block_bytes
        if self._tier == "hbm":
            return StoreConfig(layout=layout, hbm_bytes=size_bytes, options=options)
        if self._tier == "dram":
            return StoreConfig(layout=layout, dram_bytes=size_bytes, options=options)
        if context.scratch is None:
            raise TierUnavailableError("no directory to measure: name one with --dir")
        self._folder = context.scratch / f"store-{context.process}-{context.half}"
        self._folder.mkdir()
        return StoreConfig(
            require_drives=True,
            layout=layout,
            dram_bytes=max(FILL_BYTES, 4 * layout.block_bytes),
            directories=[self._folder],
            nvme_bytes=capacity_for(blocks + max(1, blocks // SPARE_SHARE), layout),
            min_free_bytes=0,
            options=options,
        )

    def _fill(self) -> None:
        """Every block in its tier, and in no faster one."""
        store, size = self._running_store, self._layout.block_bytes
        step = max(1, FILL_BYTES // size // 2)
        rows = mapped_buffer(step * size, huge_pages=True).reshape(step, size)
        for first in range(0, self._blocks, step):
            some = range(first, min(first + step, self._blocks))
            for row, number in zip(rows, some, strict=False):
                self._pattern.fill(row, number * size)
            keys = [self._keys[number] for number in some]
            done(store.put(keys, list(rows[: len(some)])).result())
            if self._tier == "nvme":
                done(store.flush(keys).result())
        if self._tier == "nvme":  # what is still in memory would be served from there
            others = [_key(self._context, f"other {n}") for n in range(2 * step)]
            for first in range(0, 2 * step, step):
                done(store.put(others[first : first + step], list(rows)).result())

    def _check_rows(self, numbers: list[int], rows: Bytes) -> int:
        """Compare rows with what the blocks hold; bytes checked."""
        want = np.empty(self._layout.block_bytes, np.uint8)
        for number, row in zip(numbers, rows, strict=False):
            self._pattern.fill(want, number * self._layout.block_bytes)
            if digest(row) != digest(want):
                raise CorruptDataError(f"block {number} is not what was put: its XXH3-64 differs")
        return len(numbers) * self._layout.block_bytes


class _Stream(_OnStore, ABC):
    """Requests in flight until it is stopped: one lane for each."""

    timeline: ClassVar[dict[str, str]] = {"_operate": "step"}  # for kvbench.profile
    operation_bytes = 0
    _lanes: Lanes | None = None

    def set_up(self, context: Context) -> None:
        """Make and fill the store, and the rows of every lane."""
        self._batch, self._depth = context.count("batch"), context.count("queue_depth")
        self.least_blocks = 2 * self._batch * self._depth
        super().set_up(context)
        size = self._layout.block_bytes
        self.operation_bytes = self._batch * size
        order = np.random.default_rng((context.seed, context.process)).permutation(self._blocks)
        whole = order[: self._blocks // self._batch * self._batch].reshape(-1, self._batch)
        self._requests: list[list[list[int]]] = [
            whole[lane :: self._depth].tolist() for lane in range(self._depth)
        ]
        area = mapped_buffer(self._depth * self._batch * size, huge_pages=True)
        self._rows = area.reshape(self._depth, self._batch, size)

    def start(self) -> None:
        """Begin."""
        self._lanes = Lanes(self._depth, self._operate, slowdown=self._context.slowdown)
        self._lanes.start()

    def poll(self, wait_s: float) -> Completions:
        """What completed since the last poll."""
        return self._running.poll(wait_s)

    def stop(self) -> None:
        """Let what is in flight finish."""
        self._running.stop()

    def slowed(self) -> float:
        """Requests beyond those told of, as a share."""
        return self._running.slowed()

    @property
    def _running(self) -> Lanes:
        if self._lanes is None:
            raise AssertionError("the stream was not started")
        return self._lanes

    @abstractmethod
    def _operate(self, lane: int, n: int) -> None:
        """The n-th request of a lane."""

    def _get(self, lane: int, n: int) -> None:
        requests = self._requests[lane]
        numbers: list[int] = requests[n % len(requests)]
        rows = self._rows[lane]
        keys = [self._keys[number] for number in numbers]
        done(self._running_store.get_into(keys, list(rows)).result())
        sectors = self._layout.block_bytes // SECTOR_BYTES
        last = (sectors - 1) * SECTOR_BYTES // WORD_BYTES
        for number, words in zip(numbers, rows.view(np.uint64), strict=True):
            if words[0] != number * sectors or words[last] != (number + 1) * sectors - 1:
                raise CorruptDataError(f"what arrived is not block {number}")

    def _got(self) -> int:
        """Every block that was asked for, once more, compared whole."""
        checked = 0
        for lane, count in enumerate(self._running.counts()):
            requests = self._requests[lane]
            for numbers in requests[: min(count, len(requests))]:
                keys = [self._keys[number] for number in numbers]
                done(self._running_store.get_into(keys, list(self._rows[lane])).result())
                checked += self._check_rows(numbers, self._rows[lane])
        return checked


class Get(_Stream):
    """Gets blocks that lie in one tier."""

    def _operate(self, lane: int, n: int) -> None:
        self._get(lane, n)

    def verify(self) -> int:
        """Every block that was got."""
        return self._got()


class Put(_Stream):
    """Puts blocks that are new; those put first are evicted. On a drive each request is flushed."""

    direction: ClassVar[str] = "write"

    def set_up(self, context: Context) -> None:
        """As every stream; the rows of a lane are what it puts."""
        super().set_up(context)
        for at, row in enumerate(self._rows.reshape(-1, self._layout.block_bytes)):
            self._pattern.fill(row, at * self._layout.block_bytes)

    def _operate(self, lane: int, n: int) -> None:
        self._put(lane, n)

    def _put(self, lane: int, n: int) -> None:
        keys = self._new_keys(lane, n)
        store = self._running_store
        done(store.put(keys, list(self._rows[lane])).result())
        if self._tier == "nvme":
            done(store.flush(keys).result())

    def _new_keys(self, lane: int, n: int) -> list[bytes]:
        return [_key(self._context, f"new {lane} {n} {at}") for at in range(self._batch)]

    def verify(self) -> int:
        """The last requests of each lane: what is still there has to be what was put."""
        checked = 0
        target = np.empty((self._batch, self._layout.block_bytes), np.uint8)
        for lane, count in enumerate(self._running.counts()):
            first = lane * self._batch
            for n in range(max(0, count - REMEMBERED), count):
                keys = self._new_keys(lane, n)
                statuses = self._running_store.get_into(keys, list(target)).result()
                if not set(statuses) <= {Status.OK, Status.MISS}:
                    raise CorruptDataError(f"a block that was put is now {statuses}")
                there = [at for at, status in enumerate(statuses) if status is Status.OK]
                checked += self._check_rows([first + at for at in there], target[there])
        return checked


class Mixed(Put):
    """Requests that get old blocks, and requests that put new ones into the same tier."""

    direction: ClassVar[str] = "both"

    def set_up(self, context: Context) -> None:
        """As `Put`, with other rows to get into; new blocks have room of their own."""
        super().set_up(context)
        self._sources = self._rows.copy()
        self._gets = context.count("gets_percent")

    def _operate(self, lane: int, n: int) -> None:
        # Spread evenly: of every hundred requests so many get.
        if n * self._gets // 100 != (n + 1) * self._gets // 100:
            requests = self._requests[lane]
            keys = [self._keys[number] for number in requests[n % len(requests)]]
            lease = self._running_store.lookup(keys)
            lease.release()
            if len(lease) == len(keys):
                self._get(lane, n)
                return
        np.copyto(self._rows[lane], self._sources[lane])
        self._put(lane, n)


class Lookup(_Stream):
    """Leases a prefix of blocks and releases it. The payload are its keys."""

    def set_up(self, context: Context) -> None:
        """As every stream, but a request moves keys alone."""
        super().set_up(context)
        self.operation_bytes = self._batch * KEY_BYTES

    def watch(self) -> Watch | None:
        """No byte of a block moves."""
        return None

    def _operate(self, lane: int, n: int) -> None:
        requests = self._requests[lane]
        keys = [self._keys[number] for number in requests[n % len(requests)]]
        with self._running_store.lookup(keys) as lease:
            if len(lease) != self._batch:
                raise CorruptDataError(f"{len(lease)} of {self._batch} blocks were found")

    def verify(self) -> int:
        """Every key that was looked up leads to its block."""
        return self._got()


class Restore(_OnStore):
    """Brings prefixes back, one after the other: a step is all blocks of one, all layers."""

    timeline: ClassVar[dict[str, str]] = {"step": "step"}  # for kvbench.profile

    def set_up(self, context: Context) -> None:
        """Prefixes enough that a step does not read what the one before it has read."""
        self._prefix = -(-context.count("tokens") // context.count("block_tokens"))
        self.least_blocks = 2 * self._prefix
        super().set_up(context)
        self._prefixes = self._blocks // self._prefix
        self._steps = 0
        size = self._layout.block_bytes
        area = mapped_buffer(self._prefix * size, huge_pages=True)
        self._rows = area.reshape(self._prefix, size)
        self._rows[:] = 0

    def step(self) -> int:
        """Restore the next prefix; the bytes that arrived."""
        self._restore(self._steps % self._prefixes)
        self._steps += 1
        return self._prefix * self._layout.block_bytes

    def verify(self) -> int:
        """Every prefix that was restored, compared whole."""
        checked = 0
        for prefix in range(min(self._steps, self._prefixes)):
            checked += self._check_rows(self._restore(prefix), self._rows)
        return checked

    def _parts_of(self, context: Context) -> int:
        return context.count("layers")

    def _restore(self, prefix: int) -> list[int]:
        first = prefix * self._prefix
        numbers = list(range(first, first + self._prefix))
        by_layer = bool(self._context.params["by_layer"])
        with self._running_store.lookup([self._keys[number] for number in numbers]) as lease:
            if len(lease) != self._prefix:
                raise CorruptDataError(f"{len(lease)} of {self._prefix} blocks were found")
            request = self._running_store.get_into(lease, list(self._rows), by_layer=by_layer)
            if by_layer:
                for part in range(self._layout.parts):
                    request.layer(part).wait()
            done(request.result())
        return numbers


def done(statuses: list[Status]) -> None:
    """Every key has to be OK: without success there is no number.

    Raises:
        TierUnavailableError: one is not.
    """
    if statuses.count(Status.OK) != len(statuses):
        wrong = sorted({status.value for status in statuses} - {Status.OK.value})
        raise TierUnavailableError(f"the store answered {', '.join(wrong)} for blocks it has")


def _key(context: Context, name: str) -> bytes:
    text = f"{context.seed} {context.process} {context.half} {name}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()
