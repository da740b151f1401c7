"""Reading and writing blocks of a file at a queue depth: the work behind the `nvme` cases.

Every lane owns every n-th block of the (shuffled) file, so no two operations in flight ever touch
the same block, and a lane comes back to a block only after all its others.

Data are checked twice. Each block that arrives in host memory is recognised at once by the stamps
of its first and last sector, which costs a fraction of a microsecond; afterwards, outside the
clock, every block that was touched is moved once more by the same engine and compared by XXH3-64.
What is written differs between cases, processes and the two sides of a pair, and between eight
passes over the file, so a write that did not happen is seen.

Only the worker process imports this.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.pattern import SECTOR_BYTES, Pattern, digest
from kvbench.measure.result import Caution
from kvbench.measure.stream import Lanes
from kvbench.store.kvikio_file import KvikioFile
from kvbench.store.posix import BlockFile, Bytes, mapped_buffer, preallocate

WRITE_CHUNK_BYTES = 4 * 2**20
WRITE_BUFFERS = 8  # contents; a block gets another one in the next pass over the file
LEAST_BLOCKS = 2  # of each lane, else it would move one block again and again
WORD_BYTES = 8
Block = Any  # uint8 [block_bytes]: a NumPy array in host memory or a torch tensor on the device
PATH_UNKNOWN = Caution(
    code="path_unknown",
    message="cuFile moved the bytes; whether by GDS or by bounce buffers of its own cannot be seen",
    fix="echo 1 | sudo tee /sys/module/nvidia_fs/parameters/rw_stats_enabled",
)


class _FileStream(ABC):
    """What reading and writing share: the file, its order, the lanes, the evidence."""

    clock: ClassVar[str] = "host"
    direction: ClassVar[str]
    timeline: ClassVar[Mapping[str, str]] = {"_operate": "step"}  # for kvbench.profile

    def __init__(self) -> None:
        self._lanes: Lanes | None = None
        self._file: BlockFile | KvikioFile | None = None

    def set_up(self, context: Context) -> None:
        """Make the data file if this run has none yet; open it by the engine that was asked for."""
        if context.scratch is None:
            raise TierUnavailableError("no directory to measure: name one with --dir")
        self._context = context
        self.operation_bytes = context.count("block_bytes")
        self._depth = context.count("queue_depth")
        self._order = _order(context, self._depth)
        self._pattern = Pattern(context.seed)
        self._path = context.scratch / f"{self.direction}.dat"
        whole_bytes = context.plan.data_bytes // SECTOR_BYTES * SECTOR_BYTES
        ensure_file(self._path, whole_bytes, self._pattern)
        with BlockFile(self._path) as file:
            file.drop_cache()
        self._fill_buffers()  # first: cuFile registers a file with the CUDA context that is there
        self._open(context)

    operation_bytes = 0

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

    def watch(self) -> Watch | None:
        """The file and the counters of the device below it."""
        storage = self._context.machine.storage
        stat_path = Path(storage.stat_path) if storage and storage.stat_path else None
        if storage is not None and storage.filesystem == "btrfs":
            stat_path = None  # it may lie on several drives, and only one of them is known
        return Watch(files=(self._path,), stat_path=stat_path, direction=self.direction)

    def slowed(self) -> float:
        """Operations beyond those told of, as a share; each moves the lane's next block."""
        return self._running.slowed()

    def observed(self) -> Observed:
        """The path as the kernel and KvikIO tell it."""
        if isinstance(self._file, KvikioFile):
            path, evidence = self._file.observed(sum(self._running.counts()))
            cautions = () if path else (PATH_UNKNOWN,)
            return Observed(path=path, evidence=evidence, cautions=cautions)
        direct = isinstance(self._file, BlockFile) and self._file.direct
        storage = self._context.machine.storage
        if direct and storage is not None and storage.device_kind == "loop":
            # Direct to the loop device; what is below it may be a file in the page cache.
            return Observed(path="POSIX, O_DIRECT to a loop device", evidence={"o_direct": True})
        if direct:
            return Observed(path="POSIX, O_DIRECT", evidence={"o_direct": True})
        caution = Caution(
            code="no_direct_io",
            message="this filesystem refuses O_DIRECT: bytes went through the page cache",
            fix="findmnt -t ext4,xfs -o TARGET,SOURCE,AVAIL  # then --dir TARGET",
        )
        return Observed(path="POSIX, buffered", evidence={"o_direct": False}, cautions=(caution,))

    def tear_down(self) -> None:
        """Close the file; the run removes it."""
        if self._file is not None:
            self._file.close()

    @property
    def _running(self) -> Lanes:
        if self._lanes is None:
            raise AssertionError("the stream was not started")
        return self._lanes

    @property
    def _opened(self) -> BlockFile | KvikioFile:
        if self._file is None:
            raise AssertionError("the file was not opened")
        return self._file

    @property
    def _on_device(self) -> bool:
        return self._context.word("memory") == "device"

    def _open(self, context: Context) -> None:
        write = self.direction == "write"
        if context.word("engine") == "kvikio":
            self._file = KvikioFile(
                self._path,
                write=write,
                device=self._on_device,
                queue_depth=self._depth,
                block_bytes=self.operation_bytes,
            )
            return
        self._file = BlockFile(self._path, write=write)
        if not self._file.direct:
            self._file.expect_random()

    def _buffers(self, count: int) -> list[Block]:
        if self._on_device:
            return _device_buffers(count, self.operation_bytes)
        area = mapped_buffer(count * self.operation_bytes)
        return list(np.split(area, count))

    @abstractmethod
    def _operate(self, lane: int, n: int) -> None:
        """Move the n-th block of a lane."""

    @abstractmethod
    def _fill_buffers(self) -> None:
        """Allocate what blocks are moved to or from."""

    def _touched(self) -> list[int]:
        """Blocks that completed operations covered, each once."""
        return [
            block
            for blocks, count in zip(self._order, self._running.counts(), strict=True)
            for block in blocks[: min(count, len(blocks))]
        ]

    def _check(
        self,
        file: BlockFile | KvikioFile,
        slots: list[Block],
        expected: Callable[[int, Bytes], None],
    ) -> int:
        """Read every block that was touched into the slots, compare checksums; bytes checked."""
        blocks = self._touched()

        def check(lane: int) -> int:
            want = np.empty(self.operation_bytes, dtype=np.uint8)
            for block in blocks[lane :: self._depth]:
                file.read(slots[lane], block * self.operation_bytes)
                expected(block, want)
                if digest(_on_host(slots[lane])) != digest(want):
                    raise CorruptDataError(
                        f"block {block} ({self.operation_bytes} bytes) of {self._path.name} "
                        "does not hold what was written: its XXH3-64 differs"
                    )
            return len(blocks[lane :: self._depth]) * self.operation_bytes

        with ThreadPoolExecutor(self._depth) as pool:
            checked = sum(pool.map(check, range(self._depth)))
        with BlockFile(self._path) as each:
            each.drop_cache()  # where it could not be bypassed, the next process would find it warm
        return checked


class ReadBlocks(_FileStream):
    """Reads blocks from the file; afterwards every block that was read is checked."""

    direction: ClassVar[str] = "read"

    def verify(self) -> int:
        """Every block that was read, once more by the same engine into the same memory."""
        return self._check(self._opened, self._slots, self._expected)

    def _fill_buffers(self) -> None:
        self._slots = self._buffers(self._depth)
        self._words = [None if self._on_device else memoryview(s).cast("Q") for s in self._slots]
        self._sectors = self.operation_bytes // SECTOR_BYTES
        self._last_word = (self._sectors - 1) * SECTOR_BYTES // WORD_BYTES

    def _operate(self, lane: int, n: int) -> None:
        blocks = self._order[lane]
        block = blocks[n % len(blocks)]
        offset_bytes = block * self.operation_bytes
        file = self._opened
        file.read(self._slots[lane], offset_bytes)
        words = self._words[lane]
        if words is not None:
            first = block * self._sectors
            if words[0] != first or words[self._last_word] != first + self._sectors - 1:
                raise CorruptDataError(f"what arrived is not block {block} of {self._path.name}")
        if isinstance(file, BlockFile) and not file.direct:
            # Buffered reads stay cold only if each block is forgotten before it comes again.
            file.drop_cache(offset_bytes, self.operation_bytes)

    def _expected(self, block: int, out: Bytes) -> None:
        self._pattern.fill(out, block * self.operation_bytes)


class WriteBlocks(_FileStream):
    """Writes blocks over an existing file; afterwards every block written is read back."""

    direction: ClassVar[str] = "write"

    def verify(self) -> int:
        """Read back what was written, past the page cache where possible."""
        with BlockFile(self._path, write=True) as file:
            file.sync()  # whichever engine wrote: a dirty page cannot be dropped
            file.drop_cache()
            slots = [mapped_buffer(self.operation_bytes) for _ in range(self._depth)]
            return self._check(file, slots, self._expected)

    def _fill_buffers(self) -> None:
        self._sources = self._buffers(WRITE_BUFFERS)
        self._contents = [np.empty(self.operation_bytes, np.uint8) for _ in self._sources]
        pattern = Pattern(_content_seed(self._context))
        for number, (source, content) in enumerate(zip(self._sources, self._contents, strict=True)):
            pattern.fill(content, number * self.operation_bytes)
            _copy_in(source, content)
        self._written: dict[int, int] = {}
        self._durable = bool(self._context.params["fsync"])

    def _operate(self, lane: int, n: int) -> None:
        blocks = self._order[lane]
        passes, at = divmod(n, len(blocks))
        block = blocks[at]
        number = (lane + at + passes) % WRITE_BUFFERS
        file = self._opened
        file.write(self._sources[number], block * self.operation_bytes)
        if self._durable and isinstance(file, BlockFile):
            file.sync()
        self._written[block] = number

    def _expected(self, block: int, out: Bytes) -> None:
        np.copyto(out, self._contents[self._written[block]])


def ensure_file(path: Path, size_bytes: int, pattern: Pattern) -> None:
    """A fully written file of the pattern; made once a run, and only whole files get the name.

    Raises:
        OSError: no space, and nothing is left behind.
    """
    if path.exists():
        return
    unfinished = path.with_suffix(".part")
    try:
        preallocate(unfinished, size_bytes)
        chunk = mapped_buffer(WRITE_CHUNK_BYTES)
        with BlockFile(unfinished, write=True) as file:
            for offset in range(0, size_bytes, WRITE_CHUNK_BYTES):
                part = chunk[: min(WRITE_CHUNK_BYTES, size_bytes - offset)]
                pattern.fill(part, offset)
                file.write(part, offset)
            file.sync()
            file.drop_cache()
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _content_seed(context: Context) -> int:
    """Another one for each case, process and side, so that no two of them write the same bytes."""
    text = repr((sorted(context.params.items()), context.process, context.half))
    return context.seed << 32 | zlib.crc32(text.encode())


def _order(context: Context, lanes: int) -> list[list[int]]:
    """Blocks of each lane, in the order it visits them."""
    block_bytes = context.count("block_bytes")
    blocks = context.plan.data_bytes // block_bytes
    if blocks < LEAST_BLOCKS * lanes:
        raise TierUnavailableError(
            f"{context.plan.data_bytes} bytes of data are too few for queue depth {lanes} at "
            f"{block_bytes}-byte blocks: use at least --data {LEAST_BLOCKS * lanes * block_bytes}"
        )
    sequence = np.arange(blocks, dtype=np.int64)
    if context.word("order") == "random":
        sequence = np.random.default_rng((context.seed, context.process)).permutation(blocks)
    return [sequence[lane::lanes].tolist() for lane in range(lanes)]


def _device_buffers(count: int, size_bytes: int) -> list[Block]:
    import torch  # noqa: PLC0415  only cases on a GPU pay for it

    return [torch.empty(size_bytes, dtype=torch.uint8, device="cuda") for _ in range(count)]


def _on_host(block: Block) -> Bytes:
    return cast("Bytes", block if isinstance(block, np.ndarray) else block.cpu().numpy())


def _copy_in(target: Block, content: Bytes) -> None:
    if isinstance(target, np.ndarray):
        np.copyto(cast("Bytes", target), content)
        return
    import torch  # noqa: PLC0415

    target.copy_(torch.as_tensor(content))
