"""Callers' memory that an agent of NIXL has registered, so that READs arrive where blocks stay.

What is registered is the array that owns the memory of a row, once, and for as long as that array
lives: a registration is found by the array itself, never by an address alone, so that memory that
was freed and used again has none. When the array goes, so does its registration. What cannot be
registered is remembered as such. Does no READs.

May import: kvbench.store.block. numpy.
"""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvbench.store.block import Bytes

MEMORY = "DRAM"
MOST_OWNERS = 64  # of the rows of one READ
MOST_REGIONS = 4 * MOST_OWNERS  # of one agent; the oldest goes
MOST_REGION_BYTES = 2**36  # with RDMA, what is registered is kept in memory
# As `kvbench.store.copying`: much faster than asking NumPy.
_from_buffer: Callable[[Any], c_char] = c_char.from_buffer


class Owner(NamedTuple):
    """An array that owns memory, and where."""

    array: NDArray[Any]
    address: int
    size_bytes: int


class Placed(NamedTuple):
    """Rows as NIXL takes them, and whose memory it is."""

    descriptors: NDArray[np.uint64]  # [rows, 3]: address, bytes, device 0
    owners: list[Owner]


def place(targets: Sequence[Bytes], size_bytes: int) -> Placed | None:
    """Where these rows lie, contiguous uint8 [size_bytes] each.

    None if they are not to be registered: they lie outside of the array that they are said to be
    views of, in memory with gaps, or in too many pieces.
    """
    owners: dict[int, Owner] = {}
    addresses: list[int] = []
    base: object = None
    least = most = 0
    for target in targets:
        if base is None or target.base is not base:  # most often, all are views of one array
            base = target.base
            owner = _owner(target)
            if not owner.array.flags.forc:
                return None
            least, most = owner.address, owner.address + owner.size_bytes - size_bytes
            owners[id(owner.array)] = owner
        try:
            address = addressof(_from_buffer(target))
        except (TypeError, ValueError):  # read-only, or with gaps
            return None
        if not least <= address <= most:
            return None
        addresses.append(address)
    if len(owners) > MOST_OWNERS:
        return None
    descriptors = np.zeros((len(addresses), 3), dtype=np.uint64)
    descriptors[:, 0] = addresses
    descriptors[:, 1] = size_bytes
    return Placed(descriptors, list(owners.values()))


class _Region(NamedTuple):
    owner: "weakref.ref[NDArray[Any]]"
    address: int
    size_bytes: int
    handle: Any  # NIXL's; None if it could not be registered


class Regions:
    """What one agent has registered. For the agent's own thread, which `later` does things on."""

    def __init__(
        self,
        agent: Any,  # noqa: ANN401  nixl's types come with it
        errors: tuple[type[Exception], ...],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self._agent: Any = agent
        self._errors = errors
        self._later = later
        self._known: dict[int, _Region] = {}  # by the owner's id, the oldest first

    def __len__(self) -> int:
        return sum(region.handle is not None for region in self._known.values())

    def has(self, owner: Owner) -> bool:
        """Whether this memory is registered, if need be from now on; its owner is to stay."""
        key = id(owner.array)
        known = self._known.get(key)
        if known is not None and (known.owner() is not owner.array or known[1:3] != owner[1:]):
            self._drop(key)
            known = None
        if known is None:
            known = self._known[key] = self._register(key, owner)
        return known.handle is not None

    def close(self) -> None:
        """Know the agent no more; whoever ends it ends what is registered."""
        self._known.clear()
        self._agent = None

    def _register(self, key: int, owner: Owner) -> _Region:
        while len(self._known) >= MOST_REGIONS:
            self._drop(next(iter(self._known)))
        handle = None
        if 0 < owner.size_bytes <= MOST_REGION_BYTES:
            with contextlib.suppress(*self._errors):
                span = [(owner.address, owner.size_bytes, 0, "")]
                handle = self._agent.register_memory(span, MEMORY)

        # On whichever thread lets go of the array. What is asked for afterwards comes after it.
        def gone(dead: "weakref.ref[NDArray[Any]]") -> None:
            self._later(lambda: self._forget(key, dead))

        return _Region(weakref.ref(owner.array, gone), owner.address, owner.size_bytes, handle)

    def _forget(self, key: int, dead: "weakref.ref[NDArray[Any]]") -> None:
        known = self._known.get(key)
        if known is not None and known.owner is dead:  # else another array has the id by now
            self._drop(key)

    def _drop(self, key: int) -> None:
        handle = self._known.pop(key).handle
        if handle is not None:
            with contextlib.suppress(*self._errors):
                self._agent.deregister_memory(handle)


def _owner(view: NDArray[Any]) -> Owner:
    """The array that a view is of; what lies behind that one lives as long as it does."""
    array = view
    while isinstance(base := array.base, np.ndarray):
        array = base
    return Owner(array, array.__array_interface__["data"][0], array.nbytes)
