"""In the place of a drive that could not be opened: no slots, and every operation fails (ENODEV).

`recover` raises why, so a store gives the tier up as it begins. `TieredStore.unfence` calls `open`
and has the tier itself from then on.

May import: kvbench.errors, kvbench.store.{block, tier}. Not torch.
"""

import errno
import os
from collections.abc import Callable, Sequence

from kvbench.errors import TierUnavailableError
from kvbench.store.block import Bytes, Layout, Stamp
from kvbench.store.tier import Fact, Recovered, Tier


class AbsentTier:
    """A tier that is not here, `reason` says why; `open` tries to make it, or raises."""

    durable = True
    stalls = True
    parts_alone = False
    at_once = False
    checks = False
    slots = 0

    def __init__(self, name: str, layout: Layout, reason: str, open_: Callable[[], Tier]) -> None:
        self.name = name
        self.layout = layout
        self.reason = reason
        self.open = open_

    def write(
        self,
        slots: Sequence[int],
        stamps: Sequence[Stamp],  # noqa: ARG002  protocol
        payloads: Sequence[Bytes],  # noqa: ARG002  protocol
    ) -> list[Exception | None]:
        """An error for each."""
        return [self._error() for _ in slots]

    def read(
        self,
        slots: Sequence[int],
        outs: Sequence[Bytes],  # noqa: ARG002  protocol
        part: int | None = None,  # noqa: ARG002  protocol
    ) -> list[Stamp | Exception]:
        """An error for each."""
        return [self._error() for _ in slots]

    def view(self, slot: int) -> None:
        """None: there is no memory."""

    def forget(self, slots: Sequence[int]) -> None:
        """Raises OSError."""
        del slots
        raise self._error()

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """Raises OSError."""
        del slots, reason
        raise self._error()

    def flush(self) -> None:
        """Raises OSError."""
        raise self._error()

    def recover(self) -> Recovered:
        """Raises TierUnavailableError."""
        raise TierUnavailableError(f"it could not be opened: {self.reason}")

    def facts(self) -> dict[str, Fact]:
        """What it has instead of memory."""
        return {"memory": "absent"}

    def close(self) -> None:
        """There is nothing to close."""

    def _error(self) -> OSError:
        return OSError(errno.ENODEV, os.strerror(errno.ENODEV), self.reason)
