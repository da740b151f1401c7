"""Three stores that share blocks, against dicts: anything in any order, and any of them failing.

Blocks have one payload for each key, so that wrong bytes show. What is well has to be found, what
nobody has must not be; a peer that is not well may cost its blocks, never wrong ones, and never
more time than the deadline and what a busy machine adds to it.
"""

import time
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvbench.peer.limits import FetchOptions
from kvbench.store.block import Status
from kvbench.store.options import Moving
from tests.peer.in_process import Cluster, Node
from tests.store.blocks import MISS, OK, WAIT_S, empty_rows, keys_of, payload_of, payloads_of, put

PREFIXES = [keys_of(6, prefix) for prefix in range(3)]
DEADLINE_S = 0.05
SLACK_S = 5.0  # for a machine that does something else

faults = st.sampled_from(["dead", "frozen", "refuses", "busy", "restarted", "flips", "stale"])
prefixes = st.sampled_from(PREFIXES)
lengths = st.integers(1, 6)
nodes = st.integers(0, 1)
KEEPS: list[Moving] = ["never", "always"]


class PeerMachine(RuleBasedStateMachine):
    """A store with two peers. `here` is what its own tiers have, `there` what each peer has."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.nodes: list[Node] = [self.cluster.node(), self.cluster.node()]
        self.there: list[set[bytes]] = [set(), set()]
        self.stale: list[set[bytes]] = [set(), set()]  # hints of blocks that are gone
        self.here: set[bytes] = set()
        self.sick: set[int] = set()
        self.keep: Moving = "never"

    @initialize(
        keep=st.sampled_from(KEEPS),
        options=st.sampled_from(
            [
                FetchOptions(deadline_s=WAIT_S),
                FetchOptions(deadline_s=WAIT_S, most_pull_blocks=1, least_pull_bytes=1, streams=3),
                FetchOptions(deadline_s=WAIT_S, hedge_s=0.005),
                FetchOptions(
                    deadline_s=WAIT_S, staged=True, most_pull_blocks=2, least_pull_bytes=1
                ),
                FetchOptions(
                    deadline_s=WAIT_S, in_flight_bytes=1, most_pull_blocks=2, least_pull_bytes=1
                ),
            ]
        ),
    )
    def begin(self, keep: Moving, options: FetchOptions) -> None:
        self.keep = keep
        self.store = self.cluster.shared(options, keep=keep)

    def teardown(self) -> None:
        self.cluster.close()

    def hint(self) -> None:
        """The directory hears of everything at once."""
        for node, there, stale in zip(self.nodes, self.there, self.stale, strict=True):
            self.cluster.directory.hints[node.id] = there | stale

    @rule(keys=prefixes, count=lengths)
    def put_here(self, keys: list[bytes], count: int) -> None:
        assert (
            self.store.put(keys[:count], payloads_of(keys[:count])).result(WAIT_S) == [OK] * count
        )
        self.here.update(keys[:count])

    @rule(which=nodes, keys=prefixes, count=lengths)
    def put_there(self, which: int, keys: list[bytes], count: int) -> None:
        put(self.nodes[which].store, keys[:count])
        self.there[which].update(keys[:count])
        self.stale[which].difference_update(keys[:count])
        self.hint()

    @rule(which=nodes, fault=faults, keys=prefixes)
    def fall_sick(self, which: int, fault: str, keys: list[bytes]) -> None:
        self.sick.add(which)
        if fault == "stale":
            self.stale[which] |= set(keys) - self.there[which]
            self.hint()
        else:
            setattr(self.nodes[which], fault, True)

    @rule(which=nodes)
    def recover(self, which: int) -> None:
        node = self.nodes[which]
        for fault in ("dead", "frozen", "refuses", "busy", "restarted", "flips"):
            setattr(node, fault, False)
        self.stale[which].clear()
        self.store.fetcher.left(node.id)  # it comes back as if it were new
        self.sick.discard(which)
        self.hint()

    @rule(keys=prefixes, count=lengths)
    def look_up(self, keys: list[bytes], count: int) -> None:
        with self.store.lookup(keys[:count]) as lease:
            local = next((at for at, key in enumerate(keys[:count]) if key not in self.here), count)
            assert lease.tiers[:local] == ("dram",) * local
            assert set(lease.tiers[local:]) <= {"peer"}
            if not self.sick:
                assert len(lease) == self.usable(keys[:count])

    @rule(keys=prefixes, count=lengths, by_lease=st.booleans())
    def get(self, keys: list[bytes], count: int, by_lease: bool) -> None:
        rows = empty_rows(count)
        start_s = time.monotonic()
        if by_lease:
            with self.store.lookup(keys[:count]) as lease:
                asked = list(lease.keys)
                request = self.store.get_into(lease, rows[: len(lease)], deadline_s=self.time_s())
                statuses = request.result(WAIT_S)
        else:
            asked = keys[:count]
            request = self.store.get_into(asked, rows, deadline_s=self.time_s())
            statuses = request.result(WAIT_S)
        assert time.monotonic() - start_s < (self.time_s() if self.sick else 0) + SLACK_S
        for key, row, status in zip(asked, rows, statuses, strict=False):
            if status is OK:
                assert (row == payload_of(key)).all(), "wrong bytes"
        self.check(asked, statuses)
        if self.keep == "always":
            self.here.update(k for k, s in zip(asked, statuses, strict=True) if s is OK)

    @rule(keys=prefixes, count=lengths)
    def prefetch(self, keys: list[bytes], count: int) -> None:
        statuses = self.store.prefetch(keys[:count], deadline_s=self.time_s()).result(WAIT_S)
        self.check(keys[:count], statuses)
        self.here.update(k for k, s in zip(keys[:count], statuses, strict=True) if s is OK)

    @invariant()
    def nothing_is_left_over(self) -> None:
        if hasattr(self, "store"):
            stats = self.store.stats()
            assert stats.leases == 0
            assert stats.peers.asked == stats.peers.arrived + sum(stats.peers.reasons.values())

    def time_s(self) -> float:
        """Who is well has all the time of a busy machine."""
        return DEADLINE_S if self.sick else WAIT_S

    def usable(self, keys: Sequence[bytes]) -> int:
        """The prefix that can be had while everybody is well."""
        anywhere = self.here.union(*self.there)
        return next((at for at, key in enumerate(keys) if key not in anywhere), len(keys))

    def check(self, keys: Sequence[bytes], statuses: Sequence[Status]) -> None:
        """What has to be, and what must not be."""
        anywhere = self.here.union(*self.there)
        for key, status in zip(keys, statuses, strict=True):
            if key in self.here:
                assert status is OK, "a local block was lost"
            if key not in anywhere:
                assert status is not OK, "a block that nobody has"
        if not self.sick:
            usable = self.usable(keys)
            assert list(statuses[:usable]) == [OK] * usable
            assert set(statuses[usable:]) <= {OK, MISS}
