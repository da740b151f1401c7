"""One fetch under way: which blocks are still to be asked of whom, and what came of it.

The keys of a fetch are cut into pulls, which the threads of the holders' lines take in turn: who is
fast takes more of them. What fails at one holder is asked of the next while there is time. Each key
is delivered once: when a hedge and the pull that it was for both answer, the second is dropped.

Where blocks arrive: in the rows, claimed for as long as the pull lasts; or in staging, and then a
pull that lasts too long holds no row. Chooses no holders: `kvbench.peer.fetch` does.

May import: kvbench.peer.{ledger, limits, lines, model, traffic},
kvbench.store.{block, request, rows}.
"""

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvbench.peer.ledger import Holder, Ledger
from kvbench.peer.limits import FetchOptions, Limits, Staging
from kvbench.peer.lines import Line, Lines, Pulled
from kvbench.peer.model import PeerId, Pull, Reason
from kvbench.peer.traffic import Traffic
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.request import Request
from kvbench.store.rows import HostRows, Rows, RowsError
from kvbench.store.workers import Alarm

MARGIN_S = 0.01  # a pull ends so long before its fetch does, and at most a tenth of its time
ALIKE = 4  # a holder so many times slower than the fastest is asked only for what others lack
PATIENCE = (
    3  # a pull that has taken so many times what was expected leaves time for the next holder
)

Then = Callable[[Sequence[Status] | None], None]


class Keep(Protocol):
    """What is to be done with blocks that arrived, before their keys are settled."""

    def __call__(self, indexes: Sequence[int], payloads: Sequence[Bytes], then: Then) -> None:
        """Call `then` once the payloads are not in use any more: with a status each, or OK all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """Blocks to fetch: the keys of one prefix, in order, and where each of them is to go.

    `rows` may be None if `keep` alone is to have them.
    """

    namespace: bytes  # its 32-byte digest
    keys: Sequence[bytes]
    rows: Rows | None
    keep: Keep | None = None


@dataclass(slots=True)
class Choice:
    """Who is asked: `reach` keys from the first on are covered; why others are not, by position."""

    holders: list[Holder] = field(default_factory=list[Holder])
    reach: int = 0
    refused: list[tuple[range, Reason]] = field(default_factory=list[tuple[range, Reason]])

    def why_not(self, position: int) -> Reason:
        """Why nobody is asked for a key."""
        return next((why for keys, why in self.refused if position in keys), Reason.NOBODY)


class FetchRequest(Request):
    """The request of a fetch. It is counted before anybody hears that it is over."""

    def __init__(self, kind: str, size: int, *, deadline_s: float, parts: int = 0) -> None:
        self.over = False  # nobody waits any more; rows may still be in use
        self.count: Callable[[], None] = lambda: None
        super().__init__(kind, size, deadline_s=deadline_s, parts=parts)

    def give_up(
        self,
        reason: str,
        indexes: Iterable[int] | None = None,
        status: Status = Status.TIMEOUT,
    ) -> int:
        """See `Request.give_up`; pulls that are under way are told."""
        if indexes is None:
            self.over = True
        return super().give_up(reason, indexes, status)

    def _finish(self) -> None:
        self.over = True
        count, self.count = self.count, lambda: None  # or they would keep each other, and the rows
        count()
        super()._finish()


@dataclass(frozen=True, slots=True)
class Tools:
    """What all fetches share."""

    lines: Lines
    limits: Limits
    staging: Staging
    traffic: Traffic
    alarm: Alarm
    layout: Layout
    options: FetchOptions

    @property
    def most_blocks(self) -> int:
        """Of one pull."""
        by_size = self.options.most_pull_bytes // self.layout.block_bytes
        return max(1, min(self.options.most_pull_blocks, by_size))


@dataclass(slots=True, eq=False)
class _Load:
    """The blocks of one pull, and the memory they arrive in."""

    positions: list[int]
    size_bytes: int  # as it entered the limits
    hedge: bool
    targets: list[Bytes] = field(default_factory=list[Bytes])  # none before there is a channel
    area: Bytes | None = None  # of staging
    unused_bytes: int = 0  # of those, that never came
    over: bool = False  # the channel has returned
    ended: bool = False  # its memory is not in use any more


class Flight:
    """A fetch. Its turns run on the threads of lines; it is over when its request is."""

    def __init__(self, tools: Tools, wanted: Wanted, request: FetchRequest, choice: Choice) -> None:
        self._tools = tools
        self._wanted = wanted
        self._request = request
        self._choice = choice
        self._holders = sorted(choice.holders, key=lambda each: each.expected_s)
        self._by_id = {each.line.id: each for each in self._holders}
        self._staged = (
            tools.options.staged
            or tools.options.hedge_s is not None
            or not isinstance(wanted.rows, HostRows)
        )
        assert request.expires_s is not None
        self._expires_s = request.expires_s
        self._lock = threading.Lock()  # before that of the lines, never after
        self._keys = Ledger(len(wanted.keys), choice.reach)
        self._why: dict[int, tuple[Reason, str]] = {}  # what went wrong last
        self._final: dict[int, Reason] = {}
        self._given_up = Reason.CANCELLED
        self.on_end: Callable[[Flight], None] = lambda _: None  # every key is settled
        self._turns: Counter[PeerId] = Counter()  # that have not begun
        self._alarms: list[int] = []
        self._size = self._pull_blocks()
        request.count = self._count

    def start(self) -> None:
        """Settle what nobody is asked for, and ask for the rest."""
        self._tools.traffic.add("asked", self._request.size)
        rest: dict[Reason, list[int]] = {}
        for position in range(self._choice.reach, self._request.size):
            rest.setdefault(self._choice.why_not(position), []).append(position)
        for reason, positions in rest.items():
            self._settle(positions, reason, "" if reason is Reason.NOBODY else _text(reason))
        if self._keys.open:
            known = weakref.ref(self)  # or the clock would keep the rows of fetches long over

            def expire() -> None:
                still = known()
                if still is not None:
                    still.expire()

            self._at(self._expires_s, expire)
            self._staff()

    def expire(self) -> None:
        """The deadline passed: nobody waits; rows in use are settled as they are let go."""
        self._given_up = Reason.LATE
        self._request.give_up(_text(Reason.LATE))

    # Turns: on threads of lines.

    def run(self, line: Line) -> None:
        """Pull once from a peer."""
        taken, hedge = self._take(line)
        try:
            if taken:
                self._pull(line, taken, hedge)
        except BaseException:  # a bug; the rows are not in use any more
            self._settle(taken, Reason.BUSY, "the fetch failed: see the log")
            raise
        finally:
            self._staff()

    def drop(self, line: Line) -> None:
        """The fetcher is closed, or has a bug: nothing more will be done."""
        self.give_up(f"peer {line.peer.name} is not asked any more")

    def give_up(self, reason: str) -> None:
        """Nobody waits any more."""
        self._request.give_up(reason)

    def _pull_blocks(self) -> int:
        """Blocks of a pull: shared out among all streams, unless they are few."""
        options, block_bytes = self._tools.options, self._tools.layout.block_bytes
        streams = max(1, options.streams * len(self._holders))
        least = max(1, options.least_pull_bytes // block_bytes)
        return max(1, min(self._tools.most_blocks, max(least, -(-len(self._keys.open) // streams))))

    def _take(self, line: Line) -> tuple[list[int], bool]:
        """The next keys that a peer may be asked for; whether another one is asked already."""
        holder = self._by_id[line.id]
        with self._lock:
            self._turns[line.id] -= 1
        with self._tools.lines.lock:
            usable = self._tools.lines.usable(line)
        if not usable or self._request.over or time.monotonic() >= self._expires_s:
            return [], False
        with self._lock:
            return self._keys.take(holder, self._size)

    def _pull(self, line: Line, positions: list[int], hedge: bool) -> None:
        tools, request = self._tools, self._request
        expires_s = self._pull_expires_s(positions)
        size_bytes = len(positions) * tools.layout.block_bytes
        no = tools.limits.enter(size_bytes, expires_s, lambda: request.over or line.gone)
        if no is not None:
            self._failed(line, dict.fromkeys(positions, no), "too much is in flight")
            return
        load = _Load(positions, size_bytes, hedge)
        if tools.options.hedge_s is not None and not hedge and len(self._holders) > 1:
            self._at(time.monotonic() + tools.options.hedge_s, lambda: self._hedge(load))
        try:
            pulled = tools.lines.pull(
                line, expires_s, len(positions), lambda: self._begin(line, load, expires_s)
            )
            load.over = True
            self._sort(line, load, pulled)
        except BaseException:
            self._end(load)
            raise

    def _begin(self, line: Line, load: _Load, expires_s: float) -> Pull:
        """There is a channel: the memory for what will come."""
        rows = self._wanted.rows
        if self._staged or not isinstance(rows, HostRows):
            load.area, load.targets = self._tools.staging.take(len(load.positions))
        else:
            load.positions = self._request.claim(load.positions)
            load.targets = [rows.target(p, None) for p in load.positions]
        return Pull(
            namespace=self._wanted.namespace,
            epoch=line.peer.epoch,
            keys=[self._wanted.keys[p] for p in load.positions],
            targets=load.targets,
            expires_s=expires_s,
            cancelled=lambda: self._unwanted(line, load),
        )

    def _pull_expires_s(self, positions: list[int]) -> float:
        """When a pull has to be over: with time left for another holder, where there is one."""
        now_s = time.monotonic()
        left_s = max(0.0, self._expires_s - now_s)
        left_s -= min(MARGIN_S, left_s / 10)
        with self._lock:
            others = [each for each in self._holders if self._keys.may(each, positions[0])]
        if any(each.line.breaker.closed for each in others):
            longest_s = PATIENCE * max(each.expected_s for each in self._holders)
            left_s = min(left_s, max(left_s / 2, longest_s))
        return now_s + left_s

    def _unwanted(self, line: Line, load: _Load) -> bool:
        request = self._request
        return request.over or line.gone or not any(map(request.open, load.positions))

    def _sort(self, line: Line, load: _Load, pulled: Pulled) -> None:
        """Deliver what arrived; ask another one for the rest, or settle it."""
        positions = load.positions
        if [outcome.reason for outcome in pulled.outcomes] == [None] * len(positions):
            self._deliver(load, positions, load.targets)
            return
        good: list[int] = []
        payloads: list[Bytes] = []
        bad: dict[int, Reason] = {}
        for at, (p, outcome) in enumerate(zip(positions, pulled.outcomes, strict=True)):
            if outcome.reason is None:
                good.append(p)
                payloads.append(load.targets[at])
            else:
                bad[p] = outcome.reason
        load.unused_bytes = len(bad) * self._tools.layout.block_bytes
        if not self._staged:
            self._request.unclaim(bad)
        self._failed(line, bad, pulled.why)
        self._deliver(load, good, payloads)

    def _deliver(self, load: _Load, positions: list[int], payloads: list[Bytes]) -> None:
        with self._lock:
            mine = self._keys.deliver(positions)
        if self._staged and self._wanted.rows is not None:
            mine = self._request.claim(mine)
        if not mine:
            self._end(load)
            return
        data = payloads
        if len(mine) < len(positions):
            fresh = set(mine)
            data = [each for p, each in zip(positions, payloads, strict=True) if p in fresh]
        if load.hedge:
            self._tools.traffic.add("hedges_won", len(mine))
        if self._staged and self._wanted.rows is not None:
            try:
                self._wanted.rows.receive_many(mine, None, data)
                self._wanted.rows.finish(mine, None)
            except RowsError as error:
                self._end(load)
                self._settle(mine, Reason.BUSY, str(error))
                return
        if self._wanted.keep is None:
            self._arrived(load, mine, None)
            return
        self._wanted.keep(mine, data, lambda statuses: self._arrived(load, mine, statuses))

    def _arrived(
        self, load: _Load, positions: list[int], statuses: Sequence[Status] | None
    ) -> None:
        """Blocks are where they are to be, and their payloads not in use any more."""
        self._end(load)
        if statuses is None:
            self._request.settle(positions, Status.OK)
            return
        for p, status in zip(positions, statuses, strict=True):
            self._final[p] = Reason.BUSY  # counted if it is not OK: the local store took none
            self._request.settle([p], status, "" if status is Status.OK else "no room here for it")

    def _end(self, load: _Load) -> None:
        """The memory of a pull is not in use any more."""
        load.over = True
        if not load.ended:
            load.ended = True
            self._tools.limits.leave(load.size_bytes, load.unused_bytes)
            if load.area is not None:
                self._tools.staging.give(load.area)

    # What is left to do.

    def _failed(self, line: Line, bad: dict[int, Reason], why: str) -> None:
        """Note why; ask another one, if there is one and nobody else is being asked."""
        with self._lock:
            self._keys.failed(bad)
            for p, said in bad.items():
                left = said is Reason.CANCELLED and not self._request.over
                reason = Reason.UNREACHABLE if left else said
                before = self._why.get(p)
                # A MISS may be remembered as absence: not if somebody else may have the block.
                if before is None or reason.status is not Status.MISS:
                    text = f"peer {line.peer.name}: {reason.value}" + (f": {why}" if why else "")
                    self._why[p] = reason, text

    def _staff(self) -> None:
        """See to it that somebody works on every key that can still be had; settle the others."""
        with self._lock:
            with self._tools.lines.lock:
                usable = [each for each in self._holders if self._tools.lines.usable(each.line)]
            in_time = not self._request.over and time.monotonic() < self._expires_s
            able = usable if in_time else []
            lost = [(p, *(self._why.get(p) or self._no_turn())) for p in self._keys.lost(able)]
            self._share_out(able)
            if not self._turns.total() and not self._keys.under_way():
                text = "too many fetches wait for this peer"
                lost += [(p, Reason.BUSY, text) for p in self._keys.open]
                self._keys.open = []
        for p, reason, text in lost:
            self._settle([p], reason, text)

    def _no_turn(self) -> tuple[Reason, str]:
        """Why a key was asked of nobody at all."""
        late = time.monotonic() >= self._expires_s
        reason = self._given_up if self._request.over else Reason.LATE if late else Reason.BREAKER
        return reason, _text(reason)

    def _share_out(self, able: list[Holder]) -> None:
        """Turns for the keys that are open, the fastest holder first; the lock is held."""
        wanted = -(-len(self._keys.open) // self._size)
        best_s = min((each.expected_s for each in able), default=0.0)
        for each_may_have in range(1, self._tools.options.streams + 1):
            for holder in able:
                pending = self._turns.total()
                if pending >= wanted:
                    return
                slow = pending and holder.expected_s > ALIKE * best_s
                line = holder.line
                if slow or self._turns[line.id] >= each_may_have:
                    continue
                if self._keys.able(holder) and self._tools.lines.submit(line, self):
                    self._turns[line.id] += 1

    def _hedge(self, load: _Load) -> None:
        """A pull has not answered: ask another one too, if there is one. On the clock's thread."""
        if load.over or self._request.over:
            return
        with self._lock:
            again = self._keys.again(load.positions, self._holders)
        if again:
            self._tools.traffic.add("hedges")
            self._staff()

    def _settle(self, positions: Sequence[int], reason: Reason, text: str) -> None:
        for p in positions:
            self._final[p] = reason
        self._request.settle(positions, reason.status, text)

    def _at(self, when_s: float, call: Callable[[], object]) -> None:
        self._alarms.append(self._tools.alarm.at(when_s, call))

    def _count(self) -> None:
        """Every key is settled; what nobody settled was given up."""
        for number in self._alarms:
            self._tools.alarm.drop(number)
        statuses = self._request.statuses
        arrived = statuses.count(Status.OK)
        reasons = Counter(
            self._final.get(p, self._given_up)
            for p, status in enumerate(statuses if arrived < len(statuses) else ())
            if status is not Status.OK
        )
        traffic = self._tools.traffic
        traffic.arrived(arrived, arrived * self._tools.layout.block_bytes)
        for reason, n in reasons.items():
            traffic.missed(reason, n)
        self.on_end(self)
        traffic.fetched((time.perf_counter_ns() - self._request.started_ns) / 1e9)


def _text(reason: Reason) -> str:
    return {
        Reason.LATE: "no peer has sent it in time",
        Reason.BREAKER: "the peer that has it failed lately and is left alone",
        Reason.NOT_WORTH: "recomputing is expected to be faster than any peer",
        Reason.CANCELLED: "cancelled",
    }.get(reason, f"no peer that has it can be asked: {reason.value}")
