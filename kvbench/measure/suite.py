"""What a suite is: a question, and the cases that answer it. Data only; nothing runs here.

An `Operation` names something that can be measured and the parameters it takes; a `Case` is an
operation with a value for each parameter, alone or beside another case as its load; a `Suite` turns
a model's geometry and a machine into cases. Built-in suites and users' TOML files go through the
same `Operation.case`, so a wrong parameter reads the same from both.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import xxhash

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import BESIDE
from kvbench.units import parse_bytes

Value = int | str | bool


class Kind(Enum):
    """What a parameter's value is, and so how text becomes one."""

    BYTES = "a size such as 256KiB"
    COUNT = "a whole number"
    CHOICE = "a word"
    FLAG = "true or false"
    TEXT = "text on one line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of an operation. Without a default it must be given."""

    name: str
    kind: Kind
    meaning: str
    default: Value | None = None
    choices: tuple[str, ...] = ()
    least: int = 1
    most: int = 2**62
    multiple_of: int = 1
    stands_for: Callable[[Value], Value] = lambda value: value
    """What a value means wherever it is used: of a file's path, the name and the contents."""

    def parse(self, raw: object) -> Value:
        """The value in base units.

        Raises:
            UsageError: it is not of this kind, not among the choices or out of bounds.
        """
        if self.kind is Kind.FLAG and isinstance(raw, bool):
            return raw
        if self.kind is Kind.CHOICE and raw in self.choices:
            return str(raw)
        if self.kind is Kind.TEXT and isinstance(raw, str) and raw.strip() and raw.isprintable():
            return raw
        number = raw
        if self.kind is Kind.BYTES and isinstance(raw, str):
            with contextlib.suppress(UsageError):  # the error below also names the parameter
                number = parse_bytes(raw)
        if (
            self.kind in {Kind.BYTES, Kind.COUNT}
            and isinstance(number, int)
            and not isinstance(number, bool)
            and self.least <= number <= self.most
            and number % self.multiple_of == 0
        ):
            return number
        raise UsageError(f"{self.name} = {raw!r}: expected {self.expected}")

    @property
    def expected(self) -> str:
        """The allowed values, for an error message and for `kvbench list`."""
        if self.kind is Kind.CHOICE:
            return "one of " + ", ".join(self.choices)
        if self.kind in {Kind.BYTES, Kind.COUNT}:
            bounds = f"{self.kind.value}, at least {self.least}"
            if self.most < 2**62:
                bounds += f", at most {self.most}"
            if self.multiple_of > 1:
                bounds += f", a multiple of {self.multiple_of}"
            return bounds
        return str(self.kind.value)


Limit = tuple[float | None, str]
"""Payload bytes per second that the hardware cannot exceed, and where that figure comes from; or
None and why there is none."""


def no_limit(_params: Mapping[str, Value], _machine: Machine) -> Limit:
    """The limit of an operation that has none we know of."""
    return None, "no limit is known for this operation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something kvbench can measure.

    `body` is "module:Class", imported only by the worker process, so that a device library is
    loaded where it is needed and nowhere else. The functions take the checked parameters:
    `label` makes the readable part of a case id, `path` says how the bytes are meant to travel,
    `contradiction` which of them cannot go together, `unmet` why this machine cannot run it (both
    None when all is well), `limit` what it cannot exceed.
    """

    name: str  # "tier.verb"
    meaning: str
    body: str
    parameters: tuple[Parameter, ...]
    label: Callable[[Mapping[str, Value]], str]
    path: Callable[[Mapping[str, Value]], str]
    contradiction: Callable[[Mapping[str, Value]], str | None] = lambda _params: None
    unmet: Callable[[Mapping[str, Value], Machine], str | None] = lambda _params, _machine: None
    limit: Callable[[Mapping[str, Value], Machine], Limit] = no_limit
    limited_by: str = ""  # what a user's `--limit` names; the tier where this is empty
    stream: bool = False  # a StreamBody: operations in flight until stopped
    traffic: Callable[[Mapping[str, Value]], float] = lambda _params: 1.0
    """Bytes that cross the memory or the bus for each byte of payload; a copy: 2.0."""

    @property
    def tier(self) -> str:
        """The tier that it measures."""
        return self.name.split(".", 1)[0]

    def case(self, raw: Mapping[str, Any], *, time_limit_s: float | None = None) -> "Case":
        """Check the parameters and make a case.

        Raises:
            UsageError: a parameter is unknown, missing, wrong by itself or beside another.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in raw:
            if name not in known:
                raise UsageError(
                    f"{self.name} has no parameter {name!r}; it has {', '.join(known)}"
                )
        params: dict[str, Value] = {}
        for name, parameter in known.items():
            if name in raw:
                params[name] = parameter.parse(raw[name])
            elif parameter.default is not None:
                params[name] = parameter.default
            else:
                raise UsageError(f"{self.name} needs {name}: {parameter.expected}")
        if wrong := self.contradiction(params):
            raise UsageError(f"{self.name}: {wrong}")
        return Case(operation=self, params=params, time_limit_s=time_limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operation with fixed parameters: what one row of a report is about."""

    operation: Operation
    params: Mapping[str, Value]
    time_limit_s: float | None = None
    beside: "Case | None" = None  # the load: what else the machine does while this is measured

    def __post_init__(self) -> None:
        """Refuse a load that would not be another one's work.

        Raises:
            UsageError: it has a load itself, or would use what this case needs for itself.
        """
        if self.beside is None:
            return
        load = self.beside.operation
        both = f"{self.operation.name} beside {load.name}"
        if self.beside.beside is not None:
            raise UsageError(f"{both}: the load has a load of its own; name one load")
        if load.tier == "nvme" and load.name == self.operation.name:
            raise UsageError(
                f"{both}: both would use one data file and the same counters of the drive; "
                "name another operation as load"
            )
        if "threads" in self.params and "threads" in self.beside.params:
            raise UsageError(
                f"{both}: the threads of both would be pinned to the same cores; "
                "name a load without threads"
            )

    @property
    def id(self) -> str:
        """For example `nvme.read/posix/1MiB/qd16/random`, with a load `CASE+LOAD`."""
        own = f"{self.operation.name}/{self.operation.label(self.params)}"
        return f"{own}{BESIDE}{self.beside.id}" if self.beside else own

    @property
    def meant(self) -> dict[str, Value]:
        """The parameters as they are told and compared: a path of this machine is not in them."""
        meant = dict(self.params)
        for parameter in self.operation.parameters:
            if parameter.name in meant:
                meant[parameter.name] = parameter.stands_for(meant[parameter.name])
        return meant

    @property
    def definition_hash(self) -> str:
        """16 hex digits over everything that makes two results of this case comparable."""
        what: tuple[object, ...] = (self.id, self.operation.body, sorted(self.meant.items()))
        if self.beside is not None:
            what += (self.beside.definition_hash,)
        return xxhash.xxh3_64_hexdigest(repr(what).encode())

    def unmet(self, machine: Machine) -> str | None:
        """Why this machine cannot run it, or not its load; None when it can."""
        own = self.operation.unmet(self.params, machine)
        if own is not None or self.beside is None:
            return own
        lacking = self.beside.unmet(machine)
        return f"its load cannot run: {lacking}" if lacking is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure: the same for every case of a run unless a case says otherwise.

    The stopping rule is precision, never significance: sampling ends when the 95 % interval of
    the median is within `target_half_width` of it, or at a limit, and the row says which.
    """

    processes: int = 10
    target_half_width: float = 0.02
    min_samples: int = 12
    min_time_s: float = 0.5  # a dozen quick samples agree before the first stall has come
    max_samples: int = 4000
    warmup_s: float = 0.3
    time_limit_s: float = 5.0  # sampling time of one process, warm-up not included
    data_bytes: int = 4 * 2**30  # what storage offsets rotate over


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A named question; `build` makes its cases from what the model and the machine are."""

    name: str
    question: str
    build: Callable[[KVGeometry, Machine], Sequence[Case]]
    plan: Plan = field(default_factory=Plan)


def unique(cases: Sequence[Case]) -> list[Case]:
    """Each case once, in order: a model's block may be one of the standard sizes."""
    return list({case.id: case for case in cases}.values())


def sweep(operation: Operation, **axes: Value | Iterable[Value]) -> list[Case]:
    """Every combination, the last axis varying fastest; a lone value is an axis of one."""
    values = [
        (axis,) if isinstance(axis, int | str) else tuple(axis)  # bool is an int
        for axis in axes.values()
    ]
    return [
        operation.case(dict(zip(axes, combination, strict=True)))
        for combination in itertools.product(*values)
    ]
