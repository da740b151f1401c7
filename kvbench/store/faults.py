"""A tier that fails as it is told: errors, delays, hangs, flipped bits, short reads, torn writes.

    tier = FaultyTier(DramTier(layout, 64))
    fault = tier.add(Fault(operation="read", kind=Fail(errno.EIO), nth=3))

fails the third block that is read from then on. Nothing is left to chance: faults count the
blocks of their operation (calls, where there are none) in the order in which they come.

May import: kvbench.errors, kvbench.store.{block, tier, wrappers}. Not torch.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Stamp
from kvbench.store.tier import Recovered, Tier
from kvbench.store.wrappers import Wrapper

Operation = Literal["read", "write", "forget", "quarantine", "flush", "recover", "close"]


@dataclass(frozen=True, slots=True)
class Fail:
    """An error for that block in its place (raised, where a call has no places); nothing moves.

    A number is that errno.
    """

    error: int | Exception = errno.EIO


@dataclass(frozen=True, slots=True)
class Delay:
    """The call waits before it does anything."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stuck:
    """The call hangs until `release` is set, and then goes on; `reached` says that it hangs."""

    release: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Raise:
    """The call raises this instead of answering: a bug in the tier."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit is wrong: on the way of what is read, on the medium of what is written.

    Bits count from the lowest of the first byte, and begin anew at the end of the bytes.
    """

    bit: int = 0


@dataclass(frozen=True, slots=True)
class Short:
    """A read moves only so many bytes and says nothing: the rest of `out` stays as it was."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tear:
    """Of a write only so many bytes arrive, with the stamp; what follows is something else."""

    size_bytes: int


Kind = Fail | Delay | Stuck | Raise | Flip | Short | Tear
_ONLY: dict[type[Kind], tuple[Operation, ...]] = {
    Flip: ("read", "write"),
    Short: ("read",),
    Tear: ("write",),
}


@dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """What happens to which blocks: `times` of them from the `nth` on, counted from 1.

    Only blocks of that operation count, and with a `slot` only those of that slot. `times=None`
    goes on for ever. `seen` and `fired` say how many blocks it counted, and how many it hit.

    Raises:
        UsageError: this kind of fault does not go with the operation, or `nth` is below 1.
    """

    operation: Operation
    kind: Kind
    nth: int = 1
    times: int | None = 1
    slot: int | None = None
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        allowed = _ONLY.get(type(self.kind))
        if allowed is not None and self.operation not in allowed:
            raise UsageError(
                f"a {type(self.kind).__name__} happens to {' and '.join(allowed)}, "
                f"not to {self.operation}"
            )
        if self.nth < 1:
            raise UsageError(f"nth is {self.nth}: the first is 1")

    def meets(self, operation: Operation, slot: int | None) -> bool:
        """Count a block; whether the fault happens to it. Not for several threads at once."""
        if operation != self.operation or (self.slot is not None and slot != self.slot):
            return False
        self.seen += 1
        past = self.seen - self.nth
        if past < 0 or (self.times is not None and past >= self.times):
            return False
        self.fired += 1
        return True


class FaultyTier(Wrapper):
    """A tier with faults that were added to it; without any, it does what `inner` does.

    `stalls=True` makes memory pass for a drive, so that the store expects it to hang.
    """

    def __init__(
        self,
        inner: Tier,
        *,
        stalls: bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._stalls = stalls
        self._sleep = sleep
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    @property
    def stalls(self) -> bool:
        """What it was told, or as the inner tier's."""
        return self.inner.stalls if self._stalls is None else self._stalls

    def add(self, fault: Fault) -> Fault:
        """From now on this happens; of several faults to one block, those added first go first."""
        with self._lock:
            self._faults.append(fault)
        return fault

    @property
    def checks(self) -> bool:
        """False: bits are flipped after the inner tier has looked at them."""
        return False

    def remove(self, fault: Fault) -> None:
        """It does not happen any more."""
        with self._lock:
            self._faults.remove(fault)

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`; with its faults."""
        due = self._due("write", slots)
        done: list[Exception | None] = [_error(kinds) for kinds in due]
        going = [i for i, error in enumerate(done) if error is None]
        answers = self.inner.write(
            [slots[i] for i in going],
            [stamps[i] for i in going],
            [_spoilt(payloads[i], due[i]) for i in going],
        )
        for i, answer in zip(going, answers, strict=True):
            done[i] = answer
        return done

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`; with its faults."""
        due = self._due("read", slots)
        found: list[Stamp | Exception | None] = [_error(kinds) for kinds in due]
        going = [i for i, error in enumerate(found) if error is None]
        short = {i: most for i in going if (most := _short(due[i])) is not None}
        into = [np.empty_like(outs[i]) if i in short else outs[i] for i in going]
        answers = self.inner.read([slots[i] for i in going], into, part)
        for i, out, answer in zip(going, into, answers, strict=True):
            found[i] = answer
            if i in short:
                outs[i][: short[i]] = out[: short[i]]
            for kind in due[i]:
                if isinstance(kind, Flip):
                    _flip(outs[i], kind.bit)
        return [each for each in found if each is not None]

    def forget(self, slots: Sequence[int]) -> None:
        """See `Tier.forget`; with its faults."""
        self._whole("forget", slots)
        self.inner.forget(slots)

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """See `Tier.quarantine`; with its faults."""
        self._whole("quarantine", slots)
        self.inner.quarantine(slots, reason)

    def flush(self) -> None:
        """See `Tier.flush`; with its faults."""
        self._whole("flush", [None])
        self.inner.flush()

    def recover(self) -> Recovered:
        """See `Tier.recover`; with its faults."""
        self._whole("recover", [None])
        return self.inner.recover()

    def close(self) -> None:
        """See `Tier.close`; with its faults."""
        self._whole("close", [None])
        self.inner.close()

    def _whole(self, operation: Operation, slots: Sequence[int | None]) -> None:
        """Have the faults of a call that has no places for errors."""
        for kinds in self._due(operation, slots):
            error = _error(kinds)
            if error is not None:
                raise error

    def _due(self, operation: Operation, slots: Sequence[int | None]) -> list[list[Kind]]:
        """What happens to each block, after the waiting; or raises."""
        with self._lock:
            due = [
                [fault.kind for fault in self._faults if fault.meets(operation, slot)]
                for slot in slots
            ]
        for kinds in due:
            for kind in kinds:
                if isinstance(kind, Delay):
                    self._sleep(kind.seconds)
                elif isinstance(kind, Stuck):
                    kind.reached.set()
                    kind.release.wait()
                elif isinstance(kind, Raise):
                    raise kind.error
        return due


def _error(kinds: Sequence[Kind]) -> Exception | None:
    for kind in kinds:
        if isinstance(kind, Fail):
            if isinstance(kind.error, Exception):
                return kind.error
            return OSError(kind.error, os.strerror(kind.error))
    return None


def _short(kinds: Sequence[Kind]) -> int | None:
    return min((kind.size_bytes for kind in kinds if isinstance(kind, Short)), default=None)


def _spoilt(payload: Bytes, kinds: Sequence[Kind]) -> Bytes:
    """What reaches the medium."""
    if not any(isinstance(kind, Flip | Tear) for kind in kinds):
        return payload
    spoilt = payload.copy()
    for kind in kinds:
        if isinstance(kind, Flip):
            _flip(spoilt, kind.bit)
        elif isinstance(kind, Tear):
            spoilt[kind.size_bytes :] ^= 0xFF
    return spoilt


def _flip(data: Bytes, bit: int) -> None:
    data[bit // 8 % len(data)] ^= 1 << (bit % 8)
