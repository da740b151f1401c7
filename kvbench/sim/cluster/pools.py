"""What a tier has: the pools of `kvbench.sim.replay_kernels`, which decide what goes.

A pool here is one tier of one node, or the central store; one without capacity has nothing.
"""

from kvbench.sim import replay_kernels as kernels
from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.state import State
from kvbench.sim.replay_rows import BLOCKS, THIS_TURN, TURN, find_row

TICKS_PER_S = 1e6  # of the clock that "ttl" goes by


@kernel
def has(s: State, p: int, block: int) -> bool:
    """Whether pool p has the block."""
    place = s.pool[p].place
    return place >= 0 and kernels.has(s.memory, int(place), int(block))


@kernel
def use(s: State, p: int, block: int) -> bool:
    """A request uses the block, or would: whether it is there."""
    place = s.pool[p].place
    if place < 0:
        return False
    s.memory[place + THIS_TURN] = int(s.clock[0].now_s * TICKS_PER_S)
    return kernels.touch(s.memory, int(place), int(block))


@kernel
def is_full(s: State, p: int) -> bool:
    """Whether one has to go before another can come."""
    row = s.pool[p]
    return bool(s.memory[row.place + BLOCKS] >= row.capacity)


@kernel
def evict(s: State, p: int) -> int:
    """The block that goes, which is gone with this; -1 if none may."""
    place = int(s.pool[p].place)
    block = kernels.victim(s.memory, place)
    if block >= 0:
        kernels.remove(s.memory, place, block)
        s.pool[p].evicted += 1
    return int(block)


@kernel
def put(s: State, p: int, block: int) -> None:
    """The block comes in; there has to be room."""
    place = int(s.pool[p].place)
    s.memory[place + THIS_TURN] = int(s.clock[0].now_s * TICKS_PER_S)
    about = block if len(s.about) > 1 else 0  # nobody asks: see `build`
    parent, depth = int(s.about[about, 0]), int(s.about[about, 1])
    kernels.insert(s.memory, place, int(block), parent, depth)


@kernel
def take_out(s: State, p: int, block: int) -> None:
    """The block leaves, if it is there."""
    place = s.pool[p].place
    if place >= 0:
        kernels.remove(s.memory, int(place), int(block))


@kernel
def hold(s: State, p: int, block: int, held: bool) -> None:
    """The block, if it is there, may not go; or may again."""
    place = int(s.pool[p].place)
    if place < 0:
        return
    if held:
        kernels.hold(s.memory, place, int(block))
    else:
        kernels.release(s.memory, place, int(block))


@kernel
def expired(s: State, p: int) -> int:
    """A block that "ttl" lets go now, which is gone with this; -1 if there is none."""
    row = s.pool[p]
    if row.place < 0 or row.ttl_s <= 0.0:
        return -1
    place = int(row.place)
    block = kernels.victim(s.memory, place)
    if block < 0:
        return -1
    used = s.memory[find_row(s.memory, place, block) + TURN]
    if int(s.clock[0].now_s * TICKS_PER_S) - used <= row.ttl_s * TICKS_PER_S:
        return -1
    kernels.remove(s.memory, place, block)
    row.evicted += 1
    return int(block)
