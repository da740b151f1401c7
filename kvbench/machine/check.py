"""One line of the doctor's checklist."""

from enum import StrEnum

import msgspec


class Status(StrEnum):
    """How much a measurement can rely on one thing."""

    PRESENT = "present"
    DEGRADED = "degraded"  # there, and worth less than it could be
    MISSING = "missing"  # some rows will be skipped
    UNKNOWN = "unknown"  # this machine does not tell


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, what was seen, what it costs and what changes it.

    `fix` is a command where one exists, otherwise the action in words; `fix_is_command` says
    which. Both `cost` and `fix` are None when all is well.
    """

    name: str
    status: Status
    seen: str
    cost: str | None = None
    fix: str | None = None
    fix_is_command: bool = True
