"""Work with peers: the body behind `peer.get`, and what the bodies of its baselines share.

Blocks that arrive are recognised at once by the stamps of their first and last sector, and compared
whole after the clock has stopped. Only the worker process imports this.
"""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.pattern import SECTOR_BYTES, Pattern, digest
from kvbench.measure.stream import Lanes
from kvbench.peer.limits import FetchOptions
from kvbench.peer.model import PeerError, Reason
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.posix import mapped_buffer
from kvbench_suites.peer import MADE, STARTED
from kvbench_suites.peer_holder import Order, Ready, key_of, namespace_of
from kvbench_suites.peer_processes import HolderProcess, peers_of, running
from kvbench_suites.peer_reader import TLS, Reader, certificates, how_of

MEMORY_SHARE = 0.3  # of what is available, for holders and rows together
GET_S = 30.0  # a request that takes longer has failed
WORD_BYTES = 8


class LaneBody(ABC):
    """Requests in flight until it is stopped: `operate` is one of them."""

    clock: ClassVar[str] = "host"
    timeline: ClassVar[dict[str, str]] = {"operate": "step"}  # for kvbench.profile
    operation_bytes = 0
    _context: Context
    _lanes: Lanes | None = None
    _depth = 1

    @abstractmethod
    def set_up(self, context: Context) -> None:
        """See `Body`."""

    @abstractmethod
    def operate(self, lane: int, n: int) -> object:
        """The n-th request of a lane; see `Lanes`."""

    @abstractmethod
    def observed(self) -> Observed:
        """See `Body`."""

    @abstractmethod
    def tear_down(self) -> None:
        """See `Body`."""

    def start(self) -> None:
        """Begin."""
        self._lanes = Lanes(self._depth, self.operate, slowdown=self._context.slowdown)
        self._lanes.start()

    def poll(self, wait_s: float) -> Completions:
        """What completed since the last poll."""
        return self.running.poll(wait_s)

    def stop(self) -> None:
        """Let what is in flight finish."""
        self.running.stop()

    def slowed(self) -> float:
        """Requests beyond those told of, as a share."""
        return self.running.slowed()

    def watch(self) -> Watch | None:
        """Nothing of this process's comes from a drive."""
        return None

    @property
    def running(self) -> Lanes:
        """The lanes, once started."""
        if self._lanes is None:
            raise AssertionError("the stream was not started")
        return self._lanes


class BlockBody(LaneBody):
    """Requests of `batch` blocks, each block of the run's pattern, into rows of each lane."""

    copies = 2  # of the data in memory: the holder's, and what else it takes

    def plan_blocks(self, context: Context) -> None:
        """How many blocks there are, and which a request asks for.

        Raises:
            TierUnavailableError: too few for the requests in flight.
        """
        self._context = context
        self._layout = Layout(context.count("block_bytes"))
        self._batch = context.count("batch")
        self._depth = int(context.params.get("queue_depth", 1))
        self._pattern = Pattern(context.seed)
        available = context.machine.memory.available_bytes
        size_bytes = context.plan.data_bytes
        if available is not None:
            size_bytes = min(size_bytes, int(available * MEMORY_SHARE) // self.copies)
        size, least = self._layout.block_bytes, self._batch * self._depth
        # As few as a request has is enough: who reads them has seen others since.
        self.blocks = max(size_bytes // size, 2 * least)
        if available is not None and self.blocks * size * self.copies > available:
            raise TierUnavailableError(
                f"{self.blocks} blocks of {size} bytes, {self.copies} times, do not fit into "
                f"{available} bytes of memory: take a smaller batch or block_bytes"
            )
        self.operation_bytes = self._batch * size

    def make_rows(self) -> None:
        """Rows of each lane, [lanes, batch, block_bytes], and the requests of each."""
        size = self._layout.block_bytes
        area = mapped_buffer(self._depth * self._batch * size, huge_pages=True)
        self._rows: Bytes = area.reshape(self._depth, self._batch, size)
        self._rows[:] = 0
        whole = np.arange(self.blocks)[: self.blocks // self._batch * self._batch]
        batches = whole.reshape(-1, self._batch)
        self._requests: list[list[list[int]]] = [
            batches[lane :: self._depth].tolist() for lane in range(self._depth)
        ]

    def rows_of(self, lane: int) -> Bytes:
        """Where the blocks of a lane's requests arrive, uint8 [batch, block_bytes]."""
        rows: Bytes = self._rows[lane]
        return rows

    def numbers(self, lane: int, n: int) -> list[int]:
        """The blocks of a request."""
        requests = self._requests[lane]
        return requests[n % len(requests)]

    def check_stamps(self, numbers: Sequence[int], rows: Bytes) -> None:
        """What arrived has to be these blocks, by first and last sector."""
        sectors = self._layout.block_bytes // SECTOR_BYTES
        last = (sectors - 1) * SECTOR_BYTES // WORD_BYTES
        words = rows.view(np.uint64)
        firsts = np.asarray(numbers, dtype=np.uint64) * np.uint64(sectors)
        right = (words[:, 0] == firsts) & (words[:, last] == firsts + np.uint64(sectors - 1))
        if not right.all():
            number = numbers[int(np.argmin(right))]
            raise CorruptDataError(f"what arrived is not block {number}")

    def check_rows(self, numbers: Sequence[int], rows: Bytes) -> int:
        """Compare rows with what the blocks hold; bytes checked."""
        size = self._layout.block_bytes
        want = np.empty(size, np.uint8)
        for number, row in zip(numbers, rows, strict=True):
            self._pattern.fill(want, number * size)
            if digest(row) != digest(want):
                raise CorruptDataError(
                    f"block {number} is not what its holder has: XXH3-64 differs"
                )
        return len(numbers) * size

    def verify(self) -> int:
        """Every request that was made, once more, compared whole."""
        checked = 0
        for lane, count in enumerate(self.running.counts()):
            for n in range(min(count, len(self._requests[lane]))):
                self._rows[lane][:] = 0
                self.operate(lane, n)
                checked += self.check_rows(self.numbers(lane, n), self._rows[lane])
        return checked


class Get(BlockBody):
    """Gets blocks that only peers have, through the store's API."""

    _reader: Reader | None = None
    _holders: Sequence[HolderProcess] = ()
    _folder: Path | None = None
    _scratch: "tempfile.TemporaryDirectory[str] | None" = None

    def set_up(self, context: Context) -> None:
        """Start the holders, wait until they are filled, and meet them."""
        self.copies = 1 + context.count("holders")
        self.plan_blocks(context)
        seed, tls = context.seed, self._credential()
        if context.word("peers") == STARTED:
            self._holders = self._started(tls)
            peers = [each.peer for each in self._holders]
        else:
            found = self._found()
            peers, seed, self.blocks = peers_of(found), found[0].seed, found[0].blocks
            self._pattern = Pattern(seed)
        self._keys = [key_of(seed, number) for number in range(self.blocks)]
        self.make_rows()
        self._targets = [self._target(lane) for lane in range(self._depth)]
        options = FetchOptions(deadline_s=GET_S, streams=context.count("streams"))
        namespace, transport = namespace_of(seed), context.word("transport")
        self._reader = Reader(self._layout, namespace, transport, options, tls=tls)
        for peer in peers:
            self._reader.meet(peer, self._keys)

    def operate(self, lane: int, n: int) -> None:
        """Get a batch, and look whether it came."""
        numbers = self.numbers(lane, n)
        keys = [self._keys[number] for number in numbers]
        request = self._meeting.store.get_into(keys, self._targets[lane], deadline_s=GET_S)
        statuses = request.result()
        if statuses.count(Status.OK) != len(statuses):
            at = next(i for i, status in enumerate(statuses) if status is not Status.OK)
            why = request.reasons.get(at, statuses[at].value)
            kind = CorruptDataError if statuses[at] is Status.CORRUPT else _failure
            raise kind(f"block {numbers[at]} did not come from a peer that has it: {why}")
        if self._context.params["memory"] == "host":
            self.check_stamps(numbers, self._rows[lane])

    def check_rows(self, numbers: Sequence[int], rows: Bytes) -> int:
        """As `BlockBody.check_rows`; what arrived on a device is copied from there first."""
        if self._context.params["memory"] == "device":
            rows[:] = self._tensor.cpu().numpy()
        return super().check_rows(numbers, rows)

    def observed(self) -> Observed:
        """The transport that channels were of, and where the holders say that blocks lay."""
        stats = self._meeting.stats()
        told = [each.does("counts") for each in self._holders]
        peers = {
            each.name: sum(way.blocks for way in each.paths.values())
            for each in stats.peers.values()
        }
        evidence = {
            "blocks_by_holder": list(peers.values()),
            "holders": told,
            "reasons": {why: count for why, count in stats.reasons.items() if count},
        }
        tier = self._tier_of(told)
        path = f"{self._meeting.path()}, from {tier}"
        if self._context.params["memory"] == "device":
            path += ", to the GPU"
        return Observed(path=path, evidence=evidence)

    def tear_down(self) -> None:
        """End the holders, whatever they do, and remove what they had on a drive."""
        if self._reader is not None:
            self._reader.close()
        for each in self._holders:
            each.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._scratch is not None:
            self._scratch.cleanup()

    @property
    def _meeting(self) -> Reader:
        if self._reader is None:
            raise AssertionError("the holders were not met")
        return self._reader

    def _credential(self) -> Path | None:
        """The folder of this reader's certificate, if the transport takes one."""
        if self._context.word("tls") != MADE:
            return Path(self._context.word("tls"))
        if self._context.word("transport") != TLS:
            return None
        self._scratch = tempfile.TemporaryDirectory(prefix="kvbench-peer-")
        return certificates(Path(self._scratch.name))

    def _found(self) -> list[Ready]:
        """Holders that run already, if they are as the case has them."""
        wanted, least = self._context.count("holders"), self._batch * self._depth
        found = running(Path(self._context.word("peers")))[:wanted]
        if len(found) < wanted:
            raise TierUnavailableError(f"{len(found)} holders run: ask for no more")
        size, blocks = found[0].block_bytes, found[0].blocks
        if size != self._layout.block_bytes:
            raise TierUnavailableError(f"the holders' blocks are of {size} bytes: ask for those")
        if blocks < least:
            raise TierUnavailableError(
                f"the holders have {blocks} blocks, and requests in flight take {least}: "
                "take a smaller batch or queue_depth"
            )
        return found

    def _started(self, tls: Path | None) -> list[HolderProcess]:
        context = self._context
        if context.word("tier") == "nvme":
            if context.scratch is None:
                raise TierUnavailableError("no directory to measure: name one with --dir")
            self._folder = context.scratch / f"peer-{context.process}-{context.half}"
            self._folder.mkdir()
        holders: list[HolderProcess] = []
        self._holders = holders  # ended also if a later one does not start
        for number in range(context.count("holders")):
            folder = None
            if self._folder is not None:
                folder = self._folder / str(number)
                folder.mkdir()
            holders.append(
                HolderProcess(
                    Order(
                        block_bytes=self._layout.block_bytes,
                        blocks=self.blocks,
                        seed=context.seed,
                        tier=context.word("tier"),
                        folder=None if folder is None else str(folder),
                        how=how_of(context.word("transport")),
                        tls=None if tls is None else str(tls),
                    )
                )
            )
        return holders

    def _target(self, lane: int) -> object:
        if self._context.params["memory"] == "host":
            return list(self._rows[lane])
        import torch  # noqa: PLC0415  only where there is a GPU

        from kvbench.store.device import TensorRows  # noqa: PLC0415

        if self._depth > 1:
            raise TierUnavailableError("memory = 'device' is for queue_depth = 1")
        shape = (self._batch, self._layout.block_bytes)
        self._tensor = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        return TensorRows(self._tensor, self._layout)

    def _tier_of(self, told: Sequence[dict[str, Any]]) -> str:
        """Where the blocks came from: a block of host memory needs no staging."""
        asked = self._context.word("tier")
        if not told:
            return asked  # running holders are not asked
        staged = sum(each["staged_blocks"] for each in told)
        sent = sum(each["sent_blocks"] for each in told)
        if asked == "dram" or staged < sent:
            return "dram" if not staged else "several tiers"
        buffered = asked == "nvme" and not all(each["direct_io"] for each in told)
        return f"{asked}, buffered" if buffered else asked


def _failure(text: str) -> PeerError:
    return PeerError(text, Reason.UNREACHABLE)
