"""A trace's requests through the API of a tiered store: the body behind the `replay` cases.

The store is full before the clock starts, of blocks that nobody asks for again. Each pass of the
trace has keys of its own and is a tenant of its own. Blocks of passes that are over were used
longest ago, so they go first, and each pass hits what it would in an empty store, while every put
evicts as it does in a store that has run for long. Only the worker process imports this.
"""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.keys import Namespace, wrap
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.pattern import SECTOR_BYTES, Pattern, digest
from kvbench.measure.result import Caution
from kvbench.measure.stream import Lanes, Outcome
from kvbench.policy.leaf_first import LeafFirst
from kvbench.policy.length_aware import LengthAware
from kvbench.policy.lru import LRU
from kvbench.policy.s3fifo import S3FIFO
from kvbench.policy.tree import TreePolicy
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.drives import capacity_for
from kvbench.store.lease import Lease
from kvbench.store.options import Moving, Options
from kvbench.store.posix import mapped_buffer
from kvbench.store.spans import Spans
from kvbench.store.store import TieredStore
from kvbench_suites.replay import MS_PER_S, PATHS, trace_of
from kvbench_suites.store_bodies import MEMORY_SHARE, done
from kvbench_suites.turns import NS_PER_S, Book, Moved, Tally, Turn, Turns, since

POLICIES: dict[str, Callable[[], TreePolicy[bytes]]] = {
    "lru": LRU,
    "s3fifo": S3FIFO,
    "length_aware": LengthAware,
    "leaf_first": LeafFirst,
}
MOVED = ("evictions", "queue_drops", "refused_admission", "demotions", "promotions", "written")
BEFORE = -1  # the pass that fills the store
REMEMBERED = 64  # requests that are read back at the end
BLOCK_WORD, PASS_WORD = 2, 3  # of a row, beside the pattern's own two; 8 bytes each
WORD_BYTES = 8
MASK = 2**64 - 1
LATE_S, LATE_SHARE = 0.1, 0.05  # a replay further behind its clock than both was overloaded
NOTHING = Outcome(0, 0, 0)


class Replay:
    """Serves the requests of a trace, one a lane at a time, and stores what was missing."""

    clock: ClassVar[str] = "host"
    timeline: ClassVar[dict[str, str]] = {"_operate": "step"}  # for kvbench.profile
    operation_bytes = 0  # requests differ
    _store: TieredStore | None = None
    _folder: Path | None = None
    _lanes: Lanes | None = None

    def set_up(self, context: Context) -> None:
        """Make the store, fill it, and the rows of every lane with what the blocks hold."""
        self._context = context
        self._layout = Layout(context.count("block_bytes"), 1)
        self._trace = trace_of(context.word("trace"), context.count("requests"))
        self._turns = Turns(self._trace, context.count("speed"))
        self._book = Book(len(self._trace.requests))
        self._deadline_s = context.count("deadline_ms") / MS_PER_S or None
        self._depth = context.count("queue_depth")
        self._longest = max(len(request.blocks) for request in self._trace.requests)
        self._check_memory()
        self._pattern = Pattern(context.seed)
        self._namespaces: dict[int, Namespace] = {}
        self._recent: list[list[Turn]] = [[] for _ in range(self._depth)]
        self._stopping = threading.Event()
        self._behind_ns = 0  # how long after it was due the last request began
        self._rows = self._made_rows()
        self._store = open_store(self._config())
        self._fill()
        self._at_start = self._counted(("hits", *MOVED))

    def start(self) -> None:
        """Begin: the trace's clock starts now."""
        self._lanes = Lanes(self._depth, self._operate, slowdown=self._context.slowdown)
        self._began_ns = time.perf_counter_ns()
        self._lanes.start()

    def poll(self, wait_s: float) -> Completions:
        """Requests that had hits and have got them since the last poll."""
        return self._running.poll(wait_s)

    def stop(self) -> None:
        """Let the requests that are being served finish; those not due yet are dropped."""
        self._stopping.set()
        self._running.stop()
        self._ended_ns = time.perf_counter_ns()
        self._at_end = self._counted(("hits", *MOVED))

    def slowed(self) -> float:
        """Requests beyond those told of, as a share."""
        return self._running.slowed()

    def spans_into(self, spans: Spans) -> None:
        """The store tells of its requests there; for `kvbench profile`."""
        self._running_store.spans_into(spans)

    def watch(self) -> Watch | None:
        """The store's file and the counters of the device below it."""
        storage = self._context.machine.storage
        if self._folder is None:
            return None
        stat_path = Path(storage.stat_path) if storage and storage.stat_path else None
        if storage is not None and storage.filesystem == "btrfs":
            stat_path = None  # it may lie on several drives, and only one of them is known
        return Watch(files=(self._folder / "blocks.kvb",), stat_path=stat_path, direction="read")

    def verify(self) -> int:
        """The last requests of each lane: what is still here, compared whole."""
        checked = 0
        want = np.empty(self._layout.block_bytes, np.uint8)
        for turn in [turn for lane in self._recent for turn in lane]:
            keys = self._keys(turn)
            with self._running_store.lookup(keys) as lease:
                rows = self._rows[0][: len(lease)]
                done(self._running_store.get_into(lease, rows).result())
            for position, row in enumerate(rows):
                self._pattern.fill(want, position * self._layout.block_bytes)
                words = want.view(np.uint64)
                words[BLOCK_WORD] = turn.request.blocks[position] & MASK
                words[PASS_WORD] = turn.number
                if digest(row) != digest(want):
                    raise CorruptDataError(
                        f"block {turn.request.blocks[position]} is not what was put: "
                        "its XXH3-64 differs"
                    )
                checked += self._layout.block_bytes
        return checked

    def observed(self) -> Observed:
        """The path, what was hit by tier, and what the store did meanwhile."""
        tiers = self._running_store.stats().tiers
        evidence = {name: dict(tier.facts) for name, tier in tiers.items()}
        replay = self._book.evidence(since(self._at_start, self._at_end, MOVED))
        replay["block_bytes"] = self._layout.block_bytes
        replay["unique_blocks"] = self._trace.unique_blocks
        replay["trace"] = f"{self._trace.name} {self._trace.digest}"
        path = PATHS["nvme" if "nvme" in tiers else "dram"]
        asked_bytes = None
        if "nvme" in tiers:
            read = since(self._at_start, self._at_end, ("hits",))["nvme"]["hits"]
            asked_bytes = read * self._layout.block_bytes
            if not tiers["nvme"].facts["direct_io"]:
                path = "the store's host memory and drive, buffered"
        return Observed(
            path=path,
            evidence={**evidence, "replay": replay},
            cautions=self._cautions(str(tiers["dram"].facts["memory"])),
            device_payload_bytes=asked_bytes,
        )

    def tear_down(self) -> None:
        """Close the store and remove its directory."""
        if self._store is not None:
            self._store.close(flush=False)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _running(self) -> Lanes:
        if self._lanes is None:
            raise AssertionError("the stream was not started")
        return self._lanes

    @property
    def _running_store(self) -> TieredStore:
        if self._store is None:
            raise AssertionError("the store was not opened")
        return self._store

    # Before the clock starts.

    def _check_memory(self) -> None:
        blocks = self._context.count("dram_blocks") + self._depth * self._longest
        wanted_bytes = blocks * self._layout.block_bytes
        available_bytes = self._context.machine.memory.available_bytes
        if available_bytes is not None and wanted_bytes > available_bytes * MEMORY_SHARE:
            raise TierUnavailableError(
                f"the store's memory and the rows of {self._depth} requests take {wanted_bytes} "
                f"bytes, and {available_bytes * MEMORY_SHARE:.0f} may be used: take fewer "
                "dram_blocks, a smaller block_bytes or queue_depth"
            )

    def _made_rows(self) -> Bytes:
        """Rows of each lane, [lanes, longest, block_bytes].

        A block is always at one position of its prefix, and what it holds goes by that position,
        with its id and pass in two words. So a row that was read into needs no filling to be put.
        """
        size = self._layout.block_bytes
        area = mapped_buffer(self._depth * self._longest * size, huge_pages=True)
        rows = area.reshape(self._depth, self._longest, size)
        for lane in rows:
            for position, row in enumerate(lane):
                self._pattern.fill(row, position * size)
        return rows

    def _config(self) -> StoreConfig:
        context, layout = self._context, self._layout
        options = Options(policy=POLICIES[context.word("policy")], demotion=_admission(context))
        dram_bytes = context.count("dram_blocks") * layout.block_bytes
        if "nvme_blocks" not in context.params:
            return StoreConfig(layout=layout, dram_bytes=dram_bytes, options=options)
        if context.scratch is None:
            raise TierUnavailableError("no directory to measure: name one with --dir")
        self._folder = context.scratch / f"replay-{context.process}-{context.half}"
        self._folder.mkdir()
        return StoreConfig(
            require_drives=True,
            layout=layout,
            dram_bytes=dram_bytes,
            directories=[self._folder],
            nvme_bytes=capacity_for(context.count("nvme_blocks"), layout),
            min_free_bytes=0,
            options=options,
        )

    def _fill(self) -> None:
        """Blocks that nobody asks for again, in every slot."""
        store = self._running_store
        memory = self._context.count("dram_blocks")
        blocks = memory if self._folder is None else self._context.count("nvme_blocks") + memory
        step = max(1, min(self._longest, memory // 2))
        for first in range(0, blocks, step):
            numbers = range(first, min(first + step, blocks))
            keys = [wrap(self._namespace(BEFORE), number) for number in numbers]
            done(store.put(keys, self._rows[0][: len(keys)], tenant="before").result())
            if self._folder is not None:
                done(store.flush(keys).result())

    def _namespace(self, number: int) -> Namespace:
        found = self._namespaces.get(number)
        if found is None:
            context = self._context
            found = self._namespaces[number] = Namespace(
                model="a trace",
                revision=self._trace.digest,
                geometry=f"{self._layout.block_bytes} bytes",
                cache_dtype="pattern",
                layout="whole",
                block_tokens=self._trace.block_tokens,
                layers=(0, 1),
                heads=(0, 1),
                salt=f"{context.seed} {context.process} {context.half} {number}".encode(),
            )
        return found

    # Requests.

    def _operate(self, lane: int, n: int) -> Outcome:
        """The next request of the trace, whichever lane is free for it."""
        del n
        turn = self._turns.take()
        keys = self._keys(turn)
        arrived_ns = self._arrival(turn)
        if arrived_ns is None:
            return NOTHING
        tally = Tally(1, 0, len(keys), turn.request.input_tokens)
        # Until its own blocks are stored, as an engine's request holds what it runs on.
        with self._running_store.lookup(keys) as lease:
            usable = self._restore(lane, turn, lease, arrived_ns, tally)
            restored_ns = self._now_ns()
            self._check(lane, turn, usable)
            self._put(lane, turn, keys, usable, tally)
        tally.hit_blocks = Counter(lease.tiers[:usable])
        tally.hit_requests = int(usable > 0)
        tally.hit_tokens = min(usable * self._trace.block_tokens, turn.request.input_tokens)
        self._recent[lane] = [*self._recent[lane][1 - REMEMBERED :], turn]
        if self._book.enter(turn.number, tally):
            self._book.at_end_of_pass(since(self._at_start, self._counted(MOVED)))
        size_bytes = usable * self._layout.block_bytes
        return Outcome(restored_ns, restored_ns - arrived_ns, size_bytes)

    def _keys(self, turn: Turn) -> list[bytes]:
        namespace = self._namespace(turn.number)
        return [wrap(namespace, block) for block in turn.request.blocks]

    def _arrival(self, turn: Turn) -> int | None:
        """When the request arrived, once it has; None if the replay was stopped before."""
        now_ns = self._now_ns()
        if turn.due_ns is None:
            return now_ns
        due_ns = self._began_ns + turn.due_ns
        if now_ns < due_ns and self._wait(due_ns - now_ns):
            return None
        self._behind_ns = max(0, self._now_ns() - due_ns)
        return due_ns

    def _now_ns(self) -> int:
        return time.perf_counter_ns()

    def _wait(self, duration_ns: int) -> bool:
        """Wait so long, or until the replay is stopped: then it is true."""
        return self._stopping.wait(duration_ns / NS_PER_S)

    def _restore(self, lane: int, turn: Turn, lease: Lease, arrived_ns: int, tally: Tally) -> int:
        """Bring the prefix into the lane's rows; how many of its blocks came without a gap."""
        left_s = None
        if self._deadline_s is not None:
            left_s = max(0.0, self._deadline_s - (self._now_ns() - arrived_ns) / NS_PER_S)
        rows = self._rows[lane][: len(lease)]
        statuses = self._running_store.get_into(lease, rows, deadline_s=left_s).result()
        if Status.CORRUPT in statuses:
            block = turn.request.blocks[statuses.index(Status.CORRUPT)]
            raise CorruptDataError(f"the store found block {block} damaged")
        found = Counter(statuses)
        tally.late_blocks = found[Status.TIMEOUT]
        tally.refused_blocks = len(statuses) - found[Status.OK] - found[Status.TIMEOUT]
        gaps = (at for at, status in enumerate(statuses) if status is not Status.OK)
        return next(gaps, len(statuses))

    def _check(self, lane: int, turn: Turn, usable: int) -> None:
        """What arrived has to be the blocks that were asked for, by first and last sector."""
        size = self._layout.block_bytes
        words = self._rows[lane][:usable].view(np.uint64)
        sectors = size // SECTOR_BYTES
        numbers = np.arange(usable, dtype=np.uint64)
        ids = _ids(turn.request.blocks[:usable])
        last = (sectors - 1) * SECTOR_BYTES // WORD_BYTES
        right = (
            (words[:, 0] == numbers * sectors)
            & (words[:, BLOCK_WORD] == ids)
            & (words[:, PASS_WORD] == turn.number)
            & (words[:, last] == numbers * sectors + (sectors - 1))
        )
        if not right.all():
            block = turn.request.blocks[int(np.argmin(right))]
            raise CorruptDataError(f"what arrived is not block {block}")

    def _put(self, lane: int, turn: Turn, keys: Sequence[bytes], usable: int, tally: Tally) -> None:
        """Store what was missing, as if it had been computed; wait, since rows are used again."""
        rows = self._rows[lane][usable : len(keys)]
        if not len(rows):
            return
        words = rows.view(np.uint64)
        words[:, BLOCK_WORD] = _ids(turn.request.blocks[usable:])
        words[:, PASS_WORD] = turn.number
        request = self._running_store.put(
            keys[usable:],
            rows,
            parent=keys[usable - 1] if usable else None,
            position=usable,
            tenant=f"pass {turn.number}",
        )
        tally.unstored_blocks = len(rows) - request.result().count(Status.OK)

    # Looking back.

    def _counted(self, names: Sequence[str]) -> Moved:
        """Blocks by tier and counter, since the store was opened."""
        return {
            name: {counter: tier.counters[counter].blocks for counter in names}
            for name, tier in self._running_store.stats().tiers.items()
        }

    def _cautions(self, memory: str) -> tuple[Caution, ...]:
        cautions: list[Caution] = []
        if memory.startswith("pageable"):
            cautions.append(
                Caution(
                    code="pageable",
                    message=f"the store's memory is {memory}",
                    fix="ulimit -l unlimited  # as root, or LimitMEMLOCK=infinity",
                )
            )
        behind_s = self._behind_ns / NS_PER_S
        lasted_s = (self._ended_ns - self._began_ns) / NS_PER_S
        if behind_s > max(LATE_S, LATE_SHARE * lasted_s):
            cautions.append(
                Caution(
                    code="overloaded",
                    message="requests came faster than they were served: latency grows with time",
                    fix="a lower speed, or a higher queue_depth, in a suite of your own",
                )
            )
        return tuple(cautions)


def _admission(context: Context) -> Moving:
    return "always" if context.params.get("admission") == "always" else "second_touch"


def _ids(blocks: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([block & MASK for block in blocks], dtype=np.uint64)
