"""Bytes on their way: every transfer gets the least of its even shares on the links it crosses.

On each link n transfers get 1 / n of its bandwidth (processor sharing), none more than the path
allows to one. What a transfer cannot use of one link because another is narrower is not given to
its neighbours there. The latencies of its links are added once the bytes are through.
"""

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.events import cancel, plan
from kvbench.sim.cluster.state import ON_ARRIVAL_OF_BYTES, State


@kernel
def entity_of(s: State, flow: int) -> int:
    """A transfer's place among the entities that have events."""
    return 2 * len(s.node) + flow


@kernel
def _refresh(s: State, flow: int, now_s: float) -> None:
    """Gives the transfer its share of now; what it got so far is settled if the share changed."""
    row = s.flow[flow]
    rate = row.most
    for i in range(3):
        number = s.end[3 * flow + i].link
        if number >= 0:
            link = s.link[number]
            rate = min(rate, link.bytes_per_s / link.flows)
    if rate == row.rate:
        return
    row.left_bytes = max(0.0, row.left_bytes - row.rate * (now_s - row.settled_s))
    row.settled_s = now_s
    row.rate = rate
    plan(
        s.clock[0],
        s.heap,
        s.event,
        entity_of(s, flow),
        now_s + row.left_bytes / rate,
        ON_ARRIVAL_OF_BYTES,
    )


@kernel
def _refresh_neighbours(s: State, flow: int, now_s: float) -> None:
    """All transfers on the links of this one, link by link, oldest first."""
    for i in range(3):
        number = s.end[3 * flow + i].link
        if number >= 0:
            at = s.link[number].first
            while at >= 0:
                _refresh(s, at // 3, now_s)
                at = s.end[at].next


@kernel
def start(s: State, flow: int, size_bytes: float, links: tuple[int, int, int]) -> None:
    """Sets off a transfer that `take` gave; -1 for a link that it does not need."""
    now_s = s.clock[0].now_s
    row = s.flow[flow]
    row.left_bytes = size_bytes
    row.rate = 0.0
    row.settled_s = now_s
    row.latency_s = 0.0
    row.most = float("inf")
    row.draining = 1 if size_bytes > 0.0 else 0
    for i in range(3):
        number = links[i]
        s.end[3 * flow + i].link = number
        if number < 0:
            continue
        link = s.link[number]
        row.latency_s += link.latency_s
        row.most = min(row.most, link.flow_bytes_per_s)
        link.bytes += size_bytes
        if row.draining == 0:
            continue
        if link.flows == 0:
            link.since_s = now_s
        link.flows += 1
        end = s.end[3 * flow + i]
        end.prev = link.last
        end.next = -1
        if link.last < 0:
            link.first = 3 * flow + i
        else:
            s.end[link.last].next = 3 * flow + i
        link.last = 3 * flow + i
    if row.draining == 1:
        _refresh_neighbours(s, flow, now_s)
    else:
        at_s = now_s + row.latency_s
        plan(s.clock[0], s.heap, s.event, entity_of(s, flow), at_s, ON_ARRIVAL_OF_BYTES)


@kernel
def drained(s: State, flow: int) -> bool:
    """The transfer's event came: True once it has arrived, False if its latency is still to come.

    A transfer whose bytes are through leaves its links to its neighbours at once.
    """
    now_s = s.clock[0].now_s
    row = s.flow[flow]
    cancel(s.clock[0], s.heap, s.event, entity_of(s, flow))
    if row.draining == 0:
        return True
    row.draining = 0
    for i in range(3):
        number = s.end[3 * flow + i].link
        if number < 0:
            continue
        link = s.link[number]
        end = s.end[3 * flow + i]
        link.flows -= 1
        if link.flows == 0:
            link.busy_s += now_s - link.since_s
        if end.prev < 0:
            link.first = end.next
        else:
            s.end[end.prev].next = end.next
        if end.next < 0:
            link.last = end.prev
        else:
            s.end[end.next].prev = end.prev
    _refresh_neighbours(s, flow, now_s)
    if row.latency_s <= 0.0:
        return True
    at_s = now_s + row.latency_s
    plan(s.clock[0], s.heap, s.event, entity_of(s, flow), at_s, ON_ARRIVAL_OF_BYTES)
    return False


@kernel
def take(s: State, kind: int, request: int, node: int, tier: int) -> int:
    """A free row for a transfer."""
    clock = s.clock[0]
    flow = clock.free_flow
    row = s.flow[flow]
    clock.free_flow = row.next_free
    clock.free_flows -= 1
    row.kind = kind
    row.request = request
    row.node = node
    row.tier = tier
    row.cells = -1
    s.event[entity_of(s, flow)].turn = clock.transfers
    clock.transfers += 1
    return int(flow)


@kernel
def release(s: State, flow: int) -> None:
    """The row is free again."""
    clock = s.clock[0]
    s.flow[flow].next_free = clock.free_flow
    clock.free_flow = flow
    clock.free_flows += 1


@kernel
def seconds(s: State, size_bytes: float, links: tuple[int, int, int]) -> float:
    """How long a transfer that starts now would take if nothing else came or went."""
    rate, latency_s = float("inf"), 0.0
    for i in range(3):
        if links[i] >= 0:
            link = s.link[links[i]]
            rate = min(rate, link.flow_bytes_per_s, link.bytes_per_s / (link.flows + 1))
            latency_s += link.latency_s
    return latency_s + (size_bytes / rate if size_bytes > 0.0 else 0.0)
