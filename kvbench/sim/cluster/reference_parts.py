"""Parts of the slow simulator: links and transfers, tiers, the directory. Plain objects.

Says the same as the compiled parts do, in the same arithmetic, with other data structures and with
the very policies that the store runs. See `kvbench.sim.cluster.reference`.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kvbench.policy import named
from kvbench.policy.flat import Flat
from kvbench.policy.names import ruled
from kvbench.policy.tree import TreePolicy
from kvbench.policy.ttl import TTL
from kvbench.sim.scenario import Path, Tier

Then = Callable[[], None]


class Agenda:
    """What happens when: by time, then rank, then turn. Planning a name again moves it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, int, object]] = []
        self._planned: dict[object, tuple[int, Then]] = {}
        self._count = 0
        self.now_s = 0.0

    def plan(self, name: object, time_s: float, rank: int, turn: int, then: Then) -> None:
        """`then` is called at `time_s`, instead of what was planned under this name."""
        self._count += 1
        self._planned[name] = (self._count, then)
        heapq.heappush(self._heap, (time_s, rank, turn, self._count, name))

    def next_s(self) -> float:
        """When something happens next; infinite if nothing does."""
        while self._heap:
            time_s, _, _, count, name = self._heap[0]
            planned = self._planned.get(name)
            if planned is not None and planned[0] == count:
                return time_s
            heapq.heappop(self._heap)
        return math.inf

    def happen(self) -> None:
        """What is next; `next_s` has just said that there is something."""
        time_s, _, _, _, name = heapq.heappop(self._heap)
        self.now_s = time_s
        self._planned.pop(name)[1]()


class Link:
    """A way for bytes, and the transfers on it, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flows: list[Flow] = []
        self.busy_s = 0.0
        self.bytes = 0.0
        self.since_s = 0.0


@dataclass(eq=False)
class Flow:
    """A transfer. Its rate is the least of its shares."""

    turn: int
    links: list[Link]
    left_bytes: float
    then: Then
    rate: float = 0.0
    settled_s: float = 0.0


class Network:
    """All transfers."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._count = 0

    def send(self, links: list[Link], size_bytes: float, then: Then) -> None:
        """`then` is called when the bytes have arrived."""
        now_s = self._agenda.now_s
        flow = Flow(self._count, links, size_bytes, then, settled_s=now_s)
        self._count += 1
        for link in links:
            link.bytes += size_bytes
        if size_bytes <= 0:
            self._through(flow)
            return
        for link in links:
            if not link.flows:
                link.since_s = now_s
            link.flows.append(flow)
        self._share(flow)

    def _share(self, changed: Flow) -> None:
        for link in changed.links:
            for flow in link.flows:
                rate = min(_share(flow.links, 0), *(x.path.flow_bytes_per_s for x in flow.links))
                if rate == flow.rate:
                    continue
                now_s = self._agenda.now_s
                moved = flow.rate * (now_s - flow.settled_s)
                flow.left_bytes = max(0.0, flow.left_bytes - moved)
                flow.settled_s, flow.rate = now_s, rate
                end_s = now_s + flow.left_bytes / rate
                self._agenda.plan(flow, end_s, 0, flow.turn, partial(self._end, flow))

    def _end(self, flow: Flow) -> None:
        for link in flow.links:
            link.flows.remove(flow)
            if not link.flows:
                link.busy_s += self._agenda.now_s - link.since_s
        self._share(flow)
        if sum(link.path.latency_s for link in flow.links) <= 0:
            flow.then()
        else:
            self._through(flow)

    def _through(self, flow: Flow) -> None:
        latency_s = sum(link.path.latency_s for link in flow.links)
        self._agenda.plan(flow, self._agenda.now_s + latency_s, 0, flow.turn, flow.then)


def _share(links: list[Link], more: int) -> float:
    return min(link.path.bytes_per_s / (len(link.flows) + more) for link in links)


def alone_s(links: list[Link], size_bytes: float) -> float:
    """Seconds of a transfer that starts now, if nothing else comes or goes."""
    latency_s = sum(link.path.latency_s for link in links)
    if size_bytes <= 0 or not links:
        return latency_s
    rate = min(_share(links, 1), *(link.path.flow_bytes_per_s for link in links))
    return latency_s + size_bytes / rate


@dataclass
class Pool:
    """One tier of one node, or the central store."""

    tier: Tier
    capacity: int
    policy: TreePolicy[int] | None
    about: dict[int, tuple[int | None, int]]  # parent and depth of each block
    agenda: Agenda
    evicted: int = 0
    dropped: int = 0
    staged: int = 0
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    held: set[int] = field(default_factory=set[int])

    @property
    def leaf_first(self) -> bool:
        """Whether no block goes before those that follow it."""
        return ruled(self.tier.eviction).leaf_first

    def __contains__(self, block: int) -> bool:
        return self.policy is not None and block in self.policy

    def _tell_time(self) -> list[int]:
        policy = self.policy.inner if isinstance(self.policy, Flat) else self.policy
        return policy.expired(self.agenda.now_s) if isinstance(policy, TTL) else []

    def use(self, block: int) -> None:
        """A request uses the block, or would."""
        if self.policy is not None:
            self._tell_time()
            self.policy.touch([block])

    def expire(self) -> list[int]:
        """Blocks whose time is over, which are gone with this."""
        old = self._tell_time()
        for block in old:
            self.take_out(block)
        self.evicted += len(old)
        return old

    def place(self, block: int) -> tuple[bool, list[int]]:
        """Whether the block is here now, and what lost its place."""
        if self.policy is None:
            return False, [block]
        self.use(block)
        lost: list[int] = []
        if len(self.policy) >= self.capacity:
            lost = self.policy.victims(1, self.held.__contains__)
            if not lost:
                return False, []
            self.policy.remove(lost[0])
            self.evicted += 1
        self.policy.insert(block, *self.about[block])
        return True, lost

    def take_out(self, block: int) -> None:
        """The block leaves, if it is here."""
        if self.policy is not None:
            self.policy.remove(block)


def pool(
    tier: Tier, unique_blocks: int, about: dict[int, tuple[int | None, int]], agenda: Agenda
) -> Pool:
    """An empty one."""
    capacity = min(tier.capacity_blocks, unique_blocks)
    policy = named(tier.eviction, capacity)() if capacity > 0 else None
    return Pool(tier, capacity, policy, about, agenda)


class Directory:
    """Who is believed to have which block."""

    def __init__(self, nodes: int, delay_s: float, agenda: Agenda) -> None:
        self._believed: list[set[int]] = [set() for _ in range(nodes)]
        self._delay_s = delay_s
        self._agenda = agenda
        self._news: deque[tuple[float, int, int, bool]] = deque()

    def tell(self, node: int, block: int, came: bool) -> None:
        """Others hear of it after the delay."""
        self._news.append((self._agenda.now_s + self._delay_s, node, block, came))
        if self._delay_s <= 0:
            self.hear()

    def hear(self) -> None:
        """All that is due."""
        while self._news and self._news[0][0] <= self._agenda.now_s:
            _, node, block, came = self._news.popleft()
            (self._believed[node].add if came else self._believed[node].discard)(block)

    def run(self, node: int, blocks: list[int]) -> int:
        """How many leading blocks the node is believed to have."""
        believed = self._believed[node]
        return next((n for n, block in enumerate(blocks) if block not in believed), len(blocks))
