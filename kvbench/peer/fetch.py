"""Fetching: who is to be asked for which blocks of a prefix, within limits and deadlines.

A fetch has a deadline always. The holders are those that the directory believes in and that can be
asked: not draining, of our layout and namespace, with a closed breaker, and expected to be faster
than recomputing. At most one fetch is slow when a peer dies or freezes: after it the peer's breaker
is open, and it is probed without anybody waiting. Where nobody can be asked, the reason is said at
once. Keeps no blocks: `kvbench.peer.store` does.

May import: kvbench.peer, kvbench.store.{block, workers}.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from kvbench.peer.flight import Choice, FetchRequest, Flight, Tools, Wanted
from kvbench.peer.ledger import Holder
from kvbench.peer.limits import FetchOptions, Limits, Staging
from kvbench.peer.lines import NO_PATH, Line, Lines
from kvbench.peer.model import Peer, PeerId, Pull, Reason, Transport
from kvbench.peer.shares import tag_of
from kvbench.peer.traffic import FetchStats, Traffic
from kvbench.store.block import Bytes, Layout
from kvbench.store.workers import Alarm

TIDY_S = 5.0  # how often idle channels are looked at
MOST_ROUNDS = 4  # how often the directory is asked for one fetch
TRIAL_BLOCKS = 4  # of a pull that finds out whether a slow peer is still slow
TRIAL_S = 5.0


class Directory(Protocol):
    """Who is believed to have which block: `kvbench.peer.directory`."""

    def holders(
        self, keys: Sequence[bytes], *, skip: Collection[PeerId] = ()
    ) -> Sequence[tuple[PeerId, int]]:
        """Peers that have the first key, and how many of the keys each has from there on."""
        ...

    def peer(self, peer_id: PeerId) -> Peer | None:
        """What a peer says of itself; None if it is not there."""
        ...


class Fetcher:
    """Fetches blocks of one layout from peers. Thread-safe.

    `transports` are in order of preference; they are closed with the fetcher. `clock` is that of
    breakers and estimates, for tests.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        directory: Directory,
        layout: Layout,
        options: FetchOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options = options or FetchOptions()
        self.layout = layout
        self.traffic = traffic = Traffic()
        self._transports = transports
        self._directory = directory
        self._lines = Lines(transports, options, traffic, layout.block_bytes, clock)
        self._limits = Limits(options.in_flight_bytes, options.bytes_per_s)
        self._alarm = Alarm("kvbench-peer-clock")
        by_size = options.most_pull_bytes // layout.block_bytes
        area_blocks = max(1, min(options.most_pull_blocks, by_size))
        self._tools = Tools(
            lines=self._lines,
            limits=self._limits,
            staging=Staging(layout.block_bytes, area_blocks, keep=2 * options.streams),
            traffic=traffic,
            alarm=self._alarm,
            layout=layout,
            options=options,
        )
        self._tags: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._flights: set[Flight] = set()  # under way: to be ended by `close`
        self._open = True
        self._tick()

    def reach(self, namespace: bytes, keys: Sequence[bytes]) -> int:
        """How many of the keys, from the first on, could be had from peers that may be asked."""
        return self.choose(namespace, keys).reach

    def choose(self, namespace: bytes, keys: Sequence[bytes]) -> Choice:
        """Who is to be asked for these keys; asks nobody."""
        tag = self._tags.get(namespace)
        if tag is None:
            tag = self._tags[namespace] = tag_of(namespace)
        choice = Choice()
        holders: dict[PeerId, Holder] = {}
        skip: set[PeerId] = set()
        for _ in range(MOST_ROUNDS):
            at = choice.reach
            rest = keys[at:] if at else keys
            found = self._directory.holders(rest, skip=skip) if rest else ()
            if not found:
                break
            for peer_id, count in found:
                peer = self._directory.peer(peer_id)
                if peer is None:
                    skip.add(peer_id)
                    continue
                covered = range(at, at + count)
                line, no = self._may_ask(peer, tag, count)
                if no is not None:
                    skip.add(peer_id)
                    choice.refused.append((covered, no))
                    if no is Reason.NOT_WORTH:
                        self._try_again(line, namespace, rest[: min(count, TRIAL_BLOCKS)])
                    continue
                if peer_id not in holders:
                    holders[peer_id] = Holder(line, self._expected_s(line))
                holders[peer_id].ranges.append(covered)
                choice.reach = max(choice.reach, covered.stop)
        choice.holders = list(holders.values())
        return choice

    def fetch(
        self,
        wanted: Wanted,
        choice: Choice | None = None,
        *,
        deadline_s: float | None = None,
        parts: int = 0,
    ) -> FetchRequest:
        """Fetch blocks: from those chosen, or of whom is chosen now.

        OK: the block is in its row, checked. Else the status is that of a `Reason`, which is in
        the text of `Request.reasons` too; a key that no peer is known to have is a MISS without.
        It ends within the deadline of the options, or `deadline_s` if that is less. A block arrives
        whole: with `parts`, all its layers at once.
        """
        options = self.options
        limit_s = options.deadline_s if deadline_s is None else min(deadline_s, options.deadline_s)
        request = FetchRequest("fetch", len(wanted.keys), deadline_s=limit_s, parts=parts)
        if choice is None:
            choice = self.choose(wanted.namespace, wanted.keys)
        if request.size:
            flight = Flight(self._tools, wanted, request, choice)
            flight.on_end = self._ended
            with self._lock:
                self._flights.add(flight)
            flight.start()
        return request

    def left(self, peer_id: PeerId) -> None:
        """A peer is gone: what is under way with it ends, and nothing is kept of it."""
        self._lines.left(peer_id)

    def stats(self) -> FetchStats:
        """What was counted, and the peers that were asked."""
        return self.traffic.snapshot(self._lines.stats(), self._limits.in_flight_bytes)

    def close(self) -> None:
        """End what is under way, within seconds; once more is no error."""
        if not self._open:
            return
        self._open = False
        with self._lock:
            flights = list(self._flights)
        for flight in flights:
            flight.give_up("the fetcher is closed")
        self._lines.close()
        self._alarm.close()
        for transport in self._transports:
            transport.close()

    # Behind it.

    def _may_ask(self, peer: Peer, tag: bytes, blocks: int) -> tuple[Line, Reason | None]:
        """The line to a peer, and why it is not to be asked for so many blocks."""
        lines = self._lines
        stream_bytes = blocks * self.layout.block_bytes // self.options.streams
        with lines.lock:
            line = lines.get(peer)
            if peer.layout != self.layout or tag not in peer.namespaces:
                return line, Reason.REFUSED
            if not lines.usable(line):
                return line, Reason.BREAKER
            path = lines.transport_of(line)
            if path == NO_PATH:
                return line, Reason.UNREACHABLE
            if not lines.worth.asks(peer.id, path, stream_bytes, blocks):
                return line, Reason.NOT_WORTH
        return line, None

    def _expected_s(self, line: Line) -> float:
        size_bytes = self._tools.most_blocks * self.layout.block_bytes
        with self._lines.lock:
            estimate = self._lines.worth.of(line.id, self._lines.transport_of(line))
            return estimate.expected_s(size_bytes)

    def _try_again(self, line: Line, namespace: bytes, keys: Sequence[bytes]) -> None:
        """Find out, now and then, whether a peer is still slower than recomputing."""
        lines = self._lines
        with lines.lock:
            path = lines.transport_of(line)
            due = lines.worth.probe_due(line.id, path, lines.clock())
        if due:
            lines.submit(line, _Trial(self._tools, namespace, list(keys)))

    def _ended(self, flight: Flight) -> None:
        with self._lock:
            self._flights.discard(flight)

    def _tick(self) -> None:
        self._lines.tidy()
        self._alarm.at(time.monotonic() + TIDY_S, self._tick)


class _Trial:
    """A small pull that nobody waits for: what the estimate of a slow peer learns from."""

    def __init__(self, tools: Tools, namespace: bytes, keys: list[bytes]) -> None:
        self._tools = tools
        self._namespace = namespace
        self._keys = keys[: tools.most_blocks]

    def run(self, line: Line) -> None:
        """Pull, and forget what came."""
        tools = self._tools
        size_bytes = len(self._keys) * tools.layout.block_bytes
        expires_s = time.monotonic() + TRIAL_S
        if tools.limits.enter(size_bytes, expires_s, lambda: line.gone) is not None:
            return
        try:
            targets: list[Bytes]
            area, targets = tools.staging.take(len(self._keys))
            tools.traffic.add("probes")
            pull = Pull(
                namespace=self._namespace,
                epoch=line.peer.epoch,
                keys=self._keys,
                targets=targets,
                expires_s=expires_s,
                cancelled=lambda: line.gone,
            )
            tools.lines.pull(line, expires_s, len(self._keys), lambda: pull)
            tools.staging.give(area)
        finally:
            tools.limits.leave(size_bytes)

    def drop(self, line: Line) -> None:
        """The next one will do it."""
