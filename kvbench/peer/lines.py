"""The lines to peers: channels and breakers of each, and the threads that use them.

A peer has so many channels at a time, one thread each; who waits for one waits in the peer's own
queue, so that a peer that hangs holds up nobody who wants another. What is fetched, and where it
goes, is for `kvbench.peer.fetch`.

May import: kvbench.peer.{breaker, limits, logs, model, traffic, worth}, kvbench.store.block.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kvbench.peer.breaker import Breaker
from kvbench.peer.limits import FetchOptions
from kvbench.peer.logs import happened
from kvbench.peer.model import (
    Channel,
    Outcome,
    Peer,
    PeerError,
    PeerId,
    Pull,
    Reason,
    Transport,
)
from kvbench.peer.traffic import PeerTraffic, Traffic
from kvbench.peer.worth import Worth

_log = logging.getLogger("kvbench.peer")
MOST_TURNS = 4096  # that wait for one peer; beyond it a fetch is told that we are busy
UNFIT_S = 30.0  # a transport that failed where another one worked is not tried again for so long
JOIN_S = 2.5  # how long closing waits for pulls, which are cancelled, and for connections
FAILURES = frozenset((Reason.UNREACHABLE, Reason.REFUSED, Reason.RESTARTED))
NO_PATH = "none"


class Turn(Protocol):
    """Something to be done on a thread of a line."""

    def run(self, line: "Line") -> None:
        """Do it."""
        ...

    def drop(self, line: "Line") -> None:
        """It will not be done: the fetcher is closed, or it raised."""
        ...


class Pulled(NamedTuple):
    """What a pull brought."""

    outcomes: list[Outcome]
    path: str  # as observed
    why: str  # in words, for what went wrong before there was a channel


@dataclass(slots=True, eq=False)
class Line:
    """One peer. Guarded by the lock of its `Lines`."""

    peer: Peer
    breaker: Breaker
    turns: deque[Turn] = field(default_factory=deque[Turn])
    offered: int = 0  # threads that were told to take a turn
    running: int = 0
    gone: bool = False
    idle: list[tuple[Channel, str, float]] = field(default_factory=list[tuple[Channel, str, float]])
    unfit: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def id(self) -> PeerId:
        """Of the peer."""
        return self.peer.id


class Lines:
    """All lines, and the threads. Thread-safe.

    `clock` is for breakers, estimates and idle channels; deadlines are always on the monotonic one.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        options: FetchOptions,
        traffic: Traffic,
        block_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self.worth = Worth(
            options.recompute_s_per_block,
            latency_s=options.expected_latency_s,
            bytes_per_s=options.expected_bytes_per_s,
            probe_s=options.worth_probe_s,
        )
        self.lock = threading.Lock()  # of lines, breakers and the worth
        self.clock = clock
        self._transports = transports
        self._traffic = traffic
        self._block_bytes = block_bytes
        self._changed = threading.Condition(self.lock)
        self._lines: dict[PeerId, Line] = {}
        self._ready: deque[Line] = deque()
        self._threads: list[threading.Thread] = []
        self._waiting = 0  # threads without a turn
        self._open = True

    def get(self, peer: Peer) -> Line:
        """The line to a peer; the lock is held. News of the peer replace what was known."""
        line = self._lines.get(peer.id)
        if line is None:
            line = Line(peer, Breaker(self.options.pause_s, self.options.most_pause_s))
            self._lines[peer.id] = line
        line.peer = peer
        return line

    def usable(self, line: Line) -> bool:
        """Whether a peer may be asked; the lock is held. A probe begins if it is time for one."""
        if line.gone or not self._open:
            return False
        if line.breaker.due(self.clock()):
            line.breaker.probe()
            self._submit(line, _Probe(self))
        return line.breaker.closed

    def transport_of(self, line: Line) -> str:
        """The transport that would be used; the lock is held."""
        fit = self._fit(line)
        return fit[0].name if fit else NO_PATH

    def submit(self, line: Line, turn: Turn) -> bool:
        """Queue a turn; False if there are too many, or the lines are closed."""
        with self.lock:
            return self._submit(line, turn)

    def left(self, peer: PeerId) -> None:
        """The peer is gone: nothing is asked of it any more, and nothing is kept of it."""
        with self.lock:
            line = self._lines.pop(peer, None)
            self.worth.forget(peer)
            idle: list[tuple[Channel, str, float]] = []
            if line is not None:
                line.gone = True
                idle, line.idle = line.idle, []
        for channel, _, _ in idle:
            channel.close()
        self._traffic.forget(peer)

    def pull(self, line: Line, expires_s: float, count: int, make: Callable[[], Pull]) -> Pulled:
        """Ask a peer, over a channel that is there or a new one, and learn from what comes of it.

        The pull is made once there is a channel: no memory is in use while one is waited for. If
        there is none, that is the outcome of all `count` keys. On a thread of the line, without the
        lock.
        """
        asked_s = time.monotonic()
        channel, name = self._idle(line)
        fresh = channel is None
        try:
            if channel is None:
                channel, name = self._connect(line, expires_s)
            pull = self._made(line, channel, name, make)
            count = len(pull.keys)
            if not count:  # nobody waits for any of them any more
                self._put_back(line, channel, name)
                return Pulled([], channel.path, "")
            outcomes, seconds = self._pull(channel, pull)
            if not fresh and _broke(outcomes):  # it may just have been idle for too long
                channel.close()
                self._close_idle(line)
                channel, name = self._connect(line, expires_s)
                outcomes, seconds = self._pull(channel, pull)
        except PeerError as error:
            outcomes = [Outcome(error.reason)] * count
            self._learn(line, NO_PATH, outcomes, 0.0, time.monotonic() - asked_s)
            self._count(line, NO_PATH, outcomes, None)
            return Pulled(outcomes, NO_PATH, str(error))
        path = channel.path
        self._put_back(line, channel, name)
        self._learn(line, name, outcomes, count * self._block_bytes, seconds)
        self._count(line, path, outcomes, seconds)
        return Pulled(outcomes, path, "")

    def tidy(self) -> None:
        """Close the channels that nobody has used for long."""
        until_s = self.clock() - self.options.idle_s
        old: list[Channel] = []
        with self.lock:
            for line in self._lines.values():
                old += [channel for channel, _, used_s in line.idle if used_s < until_s]
                line.idle = [each for each in line.idle if each[2] >= until_s]
        for channel in old:
            channel.close()

    def close(self) -> None:
        """End the threads; one that hangs in a channel is left to it."""
        with self.lock:
            self._open = False
            dropped = [(line, turn) for line in self._lines.values() for turn in line.turns]
            for line in self._lines.values():
                line.gone = True
                line.turns.clear()
            self._changed.notify_all()
            lines, threads = list(self._lines.values()), list(self._threads)
        for line, turn in dropped:
            turn.drop(line)
        until_s = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                _log.error("closing: %s hangs in a channel", thread.name)
        for line in lines:
            self._close_idle(line)

    def stats(self) -> dict[str, PeerTraffic]:
        """Every line that there is."""
        with self.lock:
            lines = list(self._lines.values())
        found: dict[str, PeerTraffic] = {}
        for line in lines:
            reasons, paths = self._traffic.of_peer(line.id)
            with self.lock:
                names = [each.name for each in self._transports if each.name in line.peer.endpoints]
                expected = {name: self.worth.of(line.id, name) for name in names}
                found[line.id.hex()] = PeerTraffic(
                    name=line.peer.name,
                    breaker=line.breaker.state.value,
                    opened=line.breaker.opened,
                    channels=len(line.idle) + line.running,
                    reasons=reasons,
                    paths=paths,
                    expected={
                        name: (each.latency_s, each.bytes_per_s) for name, each in expected.items()
                    },
                )
        return found

    # Behind it.

    def _learn(
        self, line: Line, name: str, outcomes: list[Outcome], size_bytes: float, seconds: float
    ) -> None:
        said = [outcome.reason for outcome in outcomes]
        reasons, arrived = set(said), said.count(None)
        with self.lock:
            if line.gone:
                return  # nothing is kept of it
            now_s, breaker = self.clock(), line.breaker
            opened = breaker.opened
            way = name if size_bytes else self.transport_of(line)
            estimate = self.worth.of(line.id, way)
            if arrived == len(outcomes):
                estimate.took(int(size_bytes), seconds)
            elif Reason.LATE in reasons and size_bytes:
                estimate.missed(int(size_bytes), seconds)
            if Reason.CORRUPT in reasons:
                breaker.damaged(now_s)
            elif arrived:
                breaker.answered()
            elif reasons & FAILURES:
                breaker.failed(now_s)
            elif Reason.LATE in reasons:
                breaker.late(now_s, seconds, self._usual_s(line))
            elif reasons & {Reason.GONE, Reason.BUSY}:
                breaker.answered()
            opened = breaker.opened - opened
        _say(line, name, outcomes, opened=opened > 0)

    def _count(self, line: Line, path: str, outcomes: list[Outcome], seconds: float | None) -> None:
        if not line.gone:
            self._traffic.pulled(line.id, path, outcomes, self._block_bytes, seconds)

    def _usual_s(self, line: Line) -> float:
        """What it takes until the first block of a pull arrives."""
        return self.worth.of(line.id, self.transport_of(line)).expected_s(self._block_bytes)

    def _pull(self, channel: Channel, pull: Pull) -> tuple[list[Outcome], float]:
        start_s = time.monotonic()
        try:
            outcomes = channel.pull(pull)
        except Exception as error:
            _log.exception("a channel failed: %s", channel.path)
            channel.close()
            raise PeerError(
                f"the channel failed: {type(error).__name__}: {error}", Reason.UNREACHABLE
            ) from error
        return outcomes, time.monotonic() - start_s

    def _made(self, line: Line, channel: Channel, name: str, make: Callable[[], Pull]) -> Pull:
        """What is to be asked by a channel; the channel is put back if that cannot be said."""
        try:
            return make()
        except BaseException:
            self._put_back(line, channel, name)
            raise

    def _connect(self, line: Line, expires_s: float) -> tuple[Channel, str]:
        """A new channel, by the best transport that works.

        Raises:
            PeerError: there is none by then.
        """
        expires_s = min(expires_s, time.monotonic() + self.options.connect_s)
        with self.lock:
            fit = self._fit(line)
        failed: PeerError | None = None
        for at, transport in enumerate(fit):
            try:
                channel = transport.connect(line.peer, expires_s)
            except PeerError as error:
                failed = error
                if error.reason is Reason.LATE or time.monotonic() >= expires_s:
                    break
                continue
            with self.lock:
                for worse in fit[:at]:
                    line.unfit[worse.name] = self.clock() + UNFIT_S
            return channel, transport.name
        raise failed or PeerError(
            f"no transport that {line.peer.name} has works here", Reason.UNREACHABLE
        )

    def _fit(self, line: Line) -> list[Transport]:
        now_s = self.clock()
        able = [each for each in self._transports if each.reaches(line.peer)]
        return [each for each in able if line.unfit.get(each.name, 0.0) <= now_s] or able

    def _idle(self, line: Line) -> tuple[Channel | None, str]:
        with self.lock:
            if not line.idle:
                return None, NO_PATH
            channel, name, _ = line.idle.pop()
        return channel, name

    def _put_back(self, line: Line, channel: Channel, name: str) -> None:
        if not channel.broken:
            with self.lock:
                if not line.gone:
                    line.idle.append((channel, name, self.clock()))
                    return
        channel.close()

    def _close_idle(self, line: Line) -> None:
        with self.lock:
            idle, line.idle = line.idle, []
        for channel, _, _ in idle:
            channel.close()

    def probe(self, line: Line) -> None:
        """Whether the peer is back: on a thread of the line; nobody waits for it."""
        self._traffic.add("probes")
        try:
            channel, name = self._connect(line, time.monotonic() + self.options.probe_s)
        except PeerError as error:
            _log.info("peer %s is still not there: %s", line.peer.name, error)
            with self.lock:
                line.breaker.failed(self.clock())
            return
        with self.lock:
            line.breaker.reached()
        _log.info("peer %s is back", line.peer.name, extra=happened("back", other=line.peer.name))
        self._put_back(line, channel, name)

    def _submit(self, line: Line, turn: Turn) -> bool:
        if not self._open or line.gone or len(line.turns) >= MOST_TURNS:
            return False
        line.turns.append(turn)
        self._offer(line)
        return True

    def _offer(self, line: Line) -> None:
        """Tell threads to take turns of a line, as many as it has channels; the lock is held."""
        while line.offered + line.running < self.options.streams and len(line.turns) > line.offered:
            line.offered += 1
            self._ready.append(line)
            if len(self._ready) > self._waiting and len(self._threads) < self.options.threads:
                name = f"kvbench-peer-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self.lock:
                self._waiting += 1
                while self._open and not self._ready:
                    self._changed.wait()
                self._waiting -= 1
                if not self._open:
                    return
                line = self._ready.popleft()
                line.offered -= 1
                if not line.turns:
                    continue
                turn = line.turns.popleft()
                line.running += 1
            try:
                turn.run(line)
            except Exception:  # noqa: BLE001  a bug in one turn must not end the thread
                _log.exception("a turn at peer %s failed", line.peer.name)
                turn.drop(line)
            del turn
            with self.lock:
                line.running -= 1
                self._offer(line)


class _Probe:
    """Looks whether a peer that failed is back."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def run(self, line: Line) -> None:
        """See `Lines.probe`."""
        self._lines.probe(line)

    def drop(self, line: Line) -> None:
        """The next one will do it."""
        with self._lines.lock:
            line.breaker.failed(self._lines.clock())


def _broke(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.reason is Reason.UNREACHABLE for outcome in outcomes)


def _say(line: Line, name: str, outcomes: Sequence[Outcome], *, opened: bool) -> None:
    """What an operator should know of a pull."""
    reasons = [outcome.reason for outcome in outcomes if outcome.reason is not None]
    if damaged := reasons.count(Reason.CORRUPT):
        _log.warning(
            "peer %s: %d blocks came damaged by %s",
            line.peer.name,
            damaged,
            name,
            extra=happened("damaged", other=line.peer.name, blocks=damaged, path=name),
        )
    if opened:
        why = ", ".join(sorted({each.value for each in reasons}))
        _log.warning(
            "peer %s is left alone for a while: %s",
            line.peer.name,
            why,
            extra=happened("left_alone", other=line.peer.name, why=why),
        )
