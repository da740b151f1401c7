"""What happens next: a heap with at most one planned event for each thing that can happen.

Prefill of a node, decode of a node and each transfer are entities; planning one again moves its
event. Events are ordered by time, then rank, then turn: a node's number, a transfer's age.
"""

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.state import Table


@kernel
def before(event: Table, a: int, b: int) -> bool:
    """Whether entity a's event comes before b's."""
    x, y = event[a], event[b]
    if x.time_s != y.time_s:
        return bool(x.time_s < y.time_s)
    if x.rank != y.rank:
        return bool(x.rank < y.rank)
    return bool(x.turn < y.turn)


@kernel
def _settle(heap: Table, event: Table, place: int, count: int) -> None:
    """Moves the entity at `place` up or down to where it belongs."""
    entity = heap[place]
    while place > 0:
        above = (place - 1) // 2
        if not before(event, entity, heap[above]):
            break
        heap[place] = heap[above]
        event[heap[place]].place = place + 1
        place = above
    while 2 * place + 1 < count:
        below = 2 * place + 1
        if below + 1 < count and before(event, heap[below + 1], heap[below]):
            below += 1
        if not before(event, heap[below], entity):
            break
        heap[place] = heap[below]
        event[heap[place]].place = place + 1
        place = below
    heap[place] = entity
    event[entity].place = place + 1


@kernel
def plan(clock: Table, heap: Table, event: Table, entity: int, time_s: float, rank: int) -> None:
    """The entity's event is at `time_s`, whatever was planned for it before."""
    row = event[entity]
    row.time_s = time_s
    row.rank = rank
    place = row.place - 1
    if place < 0:
        place = clock.events
        clock.events += 1
        heap[place] = entity
    _settle(heap, event, place, clock.events)


@kernel
def cancel(clock: Table, heap: Table, event: Table, entity: int) -> None:
    """The entity's event will not happen; nothing if none is planned."""
    place = event[entity].place - 1
    if place < 0:
        return
    event[entity].place = 0
    clock.events -= 1
    last = heap[clock.events]
    if last != entity:
        heap[place] = last
        _settle(heap, event, place, clock.events)
