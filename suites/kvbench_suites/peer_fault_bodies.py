"""Requests while a peer fails: the body behind `peer.fault`.

The script goes by time: HEALTHY, then the fault, then AFTER until a request is whole again; and
over again. Every block that a request calls OK is compared whole, outside its time; rows are
blanked before, so that a block of an earlier request is not taken for one that came. Only the
worker process imports this.
"""

import enum
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, TierUnavailableError, TooFewSamplesError
from kvbench.measure.body import Context, Observed
from kvbench.measure.pattern import Pattern, digest
from kvbench.measure.result import Caution
from kvbench.measure.stream import Outcome
from kvbench.peer.limits import FetchOptions
from kvbench.peer.model import PROTOCOL_VERSION, Peer
from kvbench.store.block import Layout, Status
from kvbench.store.posix import mapped_buffer
from kvbench_suites.peer_bodies import LaneBody
from kvbench_suites.peer_faults import MS_PER_S, ON_THE_WAY
from kvbench_suites.peer_holder import Order, key_of, namespace_of
from kvbench_suites.peer_processes import HolderProcess
from kvbench_suites.peer_proxy import FLIP, HOLD, PASS, SLOW
from kvbench_suites.peer_reader import Reader

PREFIXES = 4
CLEAN_S = 20.0  # the longest that a script waits for a whole request
STOP_S = 45.0  # until a script that is under way is over
LEAST_HEALTHY = 5  # requests before a fault
MODES = {"slow": SLOW, "partition": HOLD, "flip": FLIP}
OTHERS = {"version": (PROTOCOL_VERSION + 1, ""), "seed": (PROTOCOL_VERSION, "another seed")}
OPENING = frozenset(("kill", "freeze", "partition"))  # after which a breaker has to open
EVIDENCE = "faults"


class Phase(enum.Enum):
    """Of the script."""

    HEALTHY = "healthy"
    FAULT = "fault"
    AFTER = "after"  # the fault is over; no request was whole yet


@dataclass(slots=True)
class Tally:
    """What was seen in whole scripts and in the one under way. Times in seconds."""

    requests: Counter[Phase] = field(default_factory=Counter[Phase])
    whole: Counter[Phase] = field(default_factory=Counter[Phase])
    late: int = 0  # in and after the fault, beyond the deadline
    healthy_s: list[float] = field(default_factory=list[float])
    faulty_s: list[float] = field(default_factory=list[float])  # FAULT and AFTER
    local_healthy_s: list[float] = field(default_factory=list[float])
    local_faulty_s: list[float] = field(default_factory=list[float])
    open_s: list[float] = field(default_factory=list[float])  # from fault to breaker, by script
    clean_s: list[float] = field(default_factory=list[float])
    scripts: int = 0
    wrong: int = 0  # blocks
    checked: int = 0  # blocks

    def evidence(self) -> dict[str, Any]:
        """What a report makes its figures of."""
        usual_s = float(np.median(self.healthy_s)) if self.healthy_s else 0.0
        lost_s = np.maximum(np.array(self.faulty_s) - usual_s, 0.0)
        return {
            "scripts": self.scripts,
            "requests": sum(self.requests.values()),
            "requests_in_fault": self.requests[Phase.FAULT] + self.requests[Phase.AFTER],
            "whole_in_fault": self.whole[Phase.FAULT] + self.whole[Phase.AFTER],
            "unwhole_before": self.requests[Phase.HEALTHY] - self.whole[Phase.HEALTHY],
            "late": self.late,
            "healthy_p50_s": usual_s,
            "lost_max_s": float(lost_s.max(initial=0.0)),
            "lost_p99_s": _p99(lost_s),
            "lost_total_s": float(lost_s.sum()),
            "local_healthy_p50_s": _p50(self.local_healthy_s),
            "local_healthy_p99_s": _p99(np.array(self.local_healthy_s)),
            "local_fault_p50_s": _p50(self.local_faulty_s),
            "local_fault_p99_s": _p99(np.array(self.local_faulty_s)),
            "breaker_open_s": self.open_s,
            "clean_s": self.clean_s,
            "wrong_blocks": self.wrong,
            "checked_blocks": self.checked,
        }


class Fault(LaneBody):
    """Makes requests at a pace, and things go wrong on the side."""

    _reader: Reader | None = None

    def set_up(self, context: Context) -> None:
        """Start the holder, and another one if it is to be replaced; put what is local."""
        self._context = context
        self._fault = context.word("fault")
        self._layout = Layout(context.count("block_bytes"))
        self._local, self._batch = context.count("local"), context.count("batch")
        self._deadline_s = context.count("deadline_ms") / MS_PER_S
        self._tally = Tally()
        self._phase = Phase.HEALTHY
        self._over = threading.Event()  # no fault lasts, and there was one
        self._ending = False
        self._never = threading.Event()
        self._path = "none"
        self._opened = 0  # how often breakers had, when the fault began
        self._open = False
        self._holders: list[HolderProcess] = [HolderProcess(self._order())]
        if self._fault in OTHERS:
            self._holders.append(HolderProcess(self._order(*OTHERS[self._fault])))
        self._make_blocks()
        options = FetchOptions(
            deadline_s=self._deadline_s,
            recompute_s_per_block=context.count("recompute_ms") / MS_PER_S or None,
        )
        self._reader = Reader(
            self._layout,
            namespace_of(context.seed),
            context.word("transport"),
            options,
            local_blocks=PREFIXES * self._local,
        )
        self._put_local()
        self._peers: list[Peer] = [each.peer for each in self._holders]
        self._meet(0)
        self._now_in(Phase.HEALTHY)

    def operate(self, lane: int, n: int) -> Outcome:
        """The next request, once it is due; before it, what the script says."""
        del lane
        try:
            self._pace()
            self._advance()
            return self._request(n % PREFIXES)
        except BaseException:
            self._over.set()  # nobody is to wait for the end of the script
            raise

    def stop(self) -> None:
        """Let the script under way, the first at least, and the request finish."""
        self._ending = True
        self._over.wait(STOP_S)
        super().stop()

    def verify(self) -> int:
        """Every block was compared as it came; bytes.

        Raises:
            CorruptDataError: some were wrong.
            TooFewSamplesError: no script was over.
        """
        tally = self._tally
        if tally.wrong:
            raise CorruptDataError(f"{tally.wrong} of {tally.checked} blocks were wrong")
        if not tally.scripts:
            raise TooFewSamplesError(f"the fault was not over within {STOP_S:.0f} s")
        return tally.checked * self._layout.block_bytes

    def observed(self) -> Observed:
        """How blocks came while all was well, and what the fault did."""
        tally = self._tally
        cautions: list[Caution] = []
        if self._fault in OPENING and len(tally.open_s) < tally.scripts:
            opened = f"{len(tally.open_s)} of {tally.scripts} times"
            text = f"the breaker of the peer opened {opened}"
            cautions.append(Caution(code="breaker", message=text))
        if len(tally.clean_s) < tally.scripts:
            text = f"no request was whole again within {CLEAN_S:.0f} s of the end of a fault"
            cautions.append(Caution(code="not_clean", message=text))
        evidence = tally.evidence()
        # Of blocks that a peer was asked for; while its breaker is open it is asked for none.
        reasons = self._reading.stats().reasons
        evidence["reasons"] = {why: count for why, count in reasons.items() if count}
        return Observed(path=self._path, evidence={EVIDENCE: evidence}, cautions=tuple(cautions))

    def tear_down(self) -> None:
        """End the holders, also one that stands still."""
        if self._reader is not None:
            self._reader.close()
        for each in getattr(self, "_holders", ()):
            each.close()

    # Before the clock starts.

    def _order(self, version: int = PROTOCOL_VERSION, salt: str = "") -> Order:
        return Order(
            block_bytes=self._layout.block_bytes,
            blocks=PREFIXES * self._batch,
            seed=self._context.seed,
            how=self._context.word("transport"),
            proxy=self._fault in ON_THE_WAY,
            version=version,
            salt=salt,
        )

    def _make_blocks(self) -> None:
        """Numbers, keys and digests of each prefix: local blocks have the numbers after others."""
        size, pattern = self._layout.block_bytes, Pattern(self._context.seed)
        away = PREFIXES * self._batch
        self._numbers = [
            [
                *range(away + prefix * self._local, away + (prefix + 1) * self._local),
                *range(prefix * self._batch, (prefix + 1) * self._batch),
            ]
            for prefix in range(PREFIXES)
        ]
        self._keys = [
            [key_of(self._context.seed, number) for number in numbers] for numbers in self._numbers
        ]
        count = self._local + self._batch
        self._rows = mapped_buffer(count * size, huge_pages=True).reshape(count, size)
        self._digests: list[list[int]] = []
        for numbers in self._numbers:
            for row, number in zip(self._rows, numbers, strict=True):
                pattern.fill(row, number * size)
            self._digests.append([digest(row) for row in self._rows])

    def _put_local(self) -> None:
        size, pattern = self._layout.block_bytes, Pattern(self._context.seed)
        for numbers, keys in zip(self._numbers, self._keys, strict=True):
            rows = self._rows[: self._local]
            for row, number in zip(rows, numbers, strict=False):
                pattern.fill(row, number * size)
            statuses = self._reading.store.put(keys[: self._local], rows).result()
            if statuses.count(Status.OK) != self._local:
                raise TierUnavailableError(f"the local store answers {statuses}")

    @property
    def _reading(self) -> Reader:
        if self._reader is None:
            raise AssertionError("the reader was not opened")
        return self._reader

    # Requests.

    def _pace(self) -> None:
        every_s = self._context.count("every_ms") / MS_PER_S
        now_s = time.monotonic()
        due_s = getattr(self, "_due_s", now_s)
        if due_s > now_s:
            self._never.wait(due_s - now_s)
        self._due_s = max(due_s, now_s) + every_s

    def _request(self, prefix: int) -> Outcome:
        """A local hit, and a request; what became of both."""
        keys, store = self._keys[prefix], self._reading.store
        self._rows[:, :8] = 0
        start_s = time.perf_counter()
        hit = store.get_into(keys[: self._local], self._rows[: self._local]).result()
        local_s = time.perf_counter() - start_s
        self._compare(prefix, hit)
        self._rows[:, :8] = 0
        start_s = time.perf_counter()
        lease = store.lookup(keys)
        found_s = time.perf_counter() - start_s
        if self._fault == "evict" and self._phase is Phase.FAULT:
            self._holders[0].does("evict", end=PREFIXES * self._batch)
        start_s = time.perf_counter()
        request = store.get_into(lease, self._rows[: len(lease)], deadline_s=self._deadline_s)
        statuses = request.result()
        ended_ns = time.perf_counter_ns()
        lease.release()
        seconds = found_s + ended_ns / 1e9 - start_s
        if self._fault == "evict" and self._phase is Phase.FAULT:
            self._holders[0].does("fill", end=PREFIXES * self._batch)
        self._compare(prefix, statuses)
        gaps = (at for at, status in enumerate(statuses) if status is not Status.OK)
        usable = next(gaps, len(statuses))
        self._note(seconds, local_s, whole=usable == len(keys))
        return Outcome(ended_ns, round(seconds * 1e9), usable * self._layout.block_bytes)

    def _compare(self, prefix: int, statuses: list[Status]) -> None:
        """Every block that is called OK has to be the one that was asked for."""
        for row, wanted, status in zip(self._rows, self._digests[prefix], statuses, strict=False):
            if status is Status.OK:
                self._tally.checked += 1
                self._tally.wrong += digest(row) != wanted

    def _note(self, seconds: float, local_s: float, *, whole: bool) -> None:
        tally, phase = self._tally, self._phase
        tally.requests[phase] += 1
        tally.whole[phase] += whole
        healthy = phase is Phase.HEALTHY
        (tally.healthy_s if healthy else tally.faulty_s).append(seconds)
        (tally.local_healthy_s if healthy else tally.local_faulty_s).append(local_s)
        if not healthy:
            tally.late += seconds > self._deadline_s
        if phase is Phase.FAULT and not self._open and self._breakers() > self._opened:
            self._open = True
            tally.open_s.append(time.monotonic() - self._since_s)
        if phase is Phase.AFTER and whole:
            tally.clean_s.append(time.monotonic() - self._since_s)
            self._end_script()

    # The script.

    def _advance(self) -> None:
        passed_s = time.monotonic() - self._since_s
        context, phase = self._context, self._phase
        if phase is Phase.HEALTHY:
            seen = self._tally.requests[phase] - self._seen
            if passed_s >= context.count("healthy_ms") / MS_PER_S and seen >= LEAST_HEALTHY:
                self._over.clear()
                if self._ending and self._tally.scripts:  # looked at after the line above
                    self._over.set()
                    return
                self._path = self._reading.path()
                self._opened = self._breakers()
                self._open = False
                self._begin_fault()
                self._now_in(Phase.FAULT)
        elif phase is Phase.FAULT:
            if passed_s >= context.count("fault_ms") / MS_PER_S:
                self._end_fault()
                self._now_in(Phase.AFTER)
        elif passed_s >= CLEAN_S:
            self._end_script()

    def _end_script(self) -> None:
        self._tally.scripts += 1
        self._now_in(Phase.HEALTHY)
        self._over.set()

    def _now_in(self, phase: Phase) -> None:
        self._phase = phase
        self._since_s = time.monotonic()
        self._seen = self._tally.requests[phase]

    def _begin_fault(self) -> None:
        if self._fault == "kill":
            self._holders[0].kill()
        elif self._fault == "freeze":
            self._holders[0].freeze()
        elif self._fault in MODES:
            self._holders[0].does("proxy", mode=MODES[self._fault])
        elif self._fault in OTHERS:
            self._reading.part(self._peers[0])
            self._meet(1)

    def _end_fault(self) -> None:
        if self._fault == "kill":
            self._holders[0].close()
            self._holders[0] = HolderProcess(self._order())
            old, self._peers[0] = self._peers[0], self._holders[0].peer
            self._reading.part(old)
            self._meet(0)
        elif self._fault == "freeze":
            self._holders[0].thaw()
        elif self._fault in MODES:
            self._holders[0].does("proxy", mode=PASS)
        elif self._fault in OTHERS:
            self._reading.part(self._peers[1])
            self._meet(0)

    def _meet(self, at: int) -> None:
        """The reader hears of a holder, and that it has all blocks that are not here."""
        keys = [key for each in self._keys for key in each[self._local :]]
        self._reading.meet(self._peers[at], keys)

    def _breakers(self) -> int:
        """How often a breaker has opened, of the peers that are there."""
        return sum(each.opened for each in self._reading.stats().peers.values())


def _p50(seconds: list[float]) -> float | None:
    return float(np.median(seconds)) if seconds else None


def _p99(seconds: NDArray[np.float64]) -> float | None:
    return float(np.percentile(seconds, 99)) if len(seconds) else None
