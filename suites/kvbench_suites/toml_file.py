"""A user's own suite: a TOML file of operations, their parameters and sweeps.

    name = "mine"
    question = "Does the drive keep up at depth?"
    processes = 5
    time_limit = 2.0              # seconds of sampling in each process

    [[case]]
    operation = "nvme.read"
    block_bytes = ["256KiB", "block"]   # a list is swept; "block", "layer", "page": the model's
    queue_depth = [1, 16]
    beside = { operation = "dram.copy", block_bytes = "block", threads = 1 }  # its load, if any

Further keys at the top: warmup (seconds), data (size of each data file), target (half-width of
the interval at which a process stops). A mistake is an error with the file, the key and what is
allowed there; a case that is named twice is measured once.
"""

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.suite import Case, Kind, Operation, Parameter, Plan, Suite, Value, unique
from kvbench.units import MIB
from kvbench_suites.nvme import whole_sectors

MODEL_SIZES: dict[str, Callable[[KVGeometry], int]] = {
    "block": lambda geometry: geometry.block_bytes,
    "layer": lambda geometry: geometry.layer_block_bytes,
    "page": lambda geometry: geometry.page_bytes,
}
TOP_KEYS = ("name", "question", "case", "processes", "time_limit", "warmup", "data", "target")
DAY_S = 86_400.0
PROCESSES = Parameter(
    name="processes", kind=Kind.COUNT, meaning="fresh worker processes for each case", most=1000
)
DATA = Parameter(name="data", kind=Kind.BYTES, meaning="size of each data file", least=MIB)
MOST_CASES = 5000  # a sweep beyond this is a mistake in the file, not a plan


def load_suite(path: Path, operations: Sequence[Operation]) -> Suite:
    """The suite in a file. Parameters are checked now; the model's sizes when it is built.

    Raises:
        UsageError: the file cannot be read, is not TOML, or says something a suite cannot.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read suite {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    _only(document, TOP_KEYS, f"{path}")
    tables = cast("list[Any] | None", document.get("case"))
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: key 'case': expected at least one [[case]] table")
    by_name = {operation.name: operation for operation in operations}
    entries = [
        _Entry(f"{path}: case {number}", table, by_name)
        for number, table in enumerate(tables, start=1)
    ]
    return Suite(
        name=_name(document, path),
        question=_text(document, "question", path, default=f"the cases of {path.name}"),
        build=lambda geometry, _machine: _build(path, entries, geometry, _machine),
        plan=_plan(document, path),
    )


class _Entry:
    """One [[case]] table, or the load in it: an operation and the values of each axis."""

    def __init__(
        self,
        where: str,
        table: object,
        operations: Mapping[str, Operation],
        *,
        is_load: bool = False,
    ) -> None:
        self.where = where
        if not isinstance(table, dict):
            form = '{ operation = "dram.copy", … }' if is_load else "[[case]]"
            raise UsageError(f"{where}: expected a table {form}")
        values = dict(cast("dict[str, Any]", table))
        name = values.pop("operation", None)
        if not isinstance(name, str) or name not in operations:
            raise UsageError(
                f"{self.where}: key 'operation' = {name!r}: expected one of {', '.join(operations)}"
            )
        self.operation = operations[name]
        self.time_limit_s: float | None = None
        self.beside: _Entry | None = None
        if not is_load:  # which lasts as long as its case, and has no load itself
            self.time_limit_s = _number(values.pop("time_limit", None), "time_limit", where)
            if "beside" in values:
                load = values.pop("beside")
                self.beside = _Entry(f"{where}: beside", load, operations, is_load=True)
        self.axes: dict[str, list[Any]] = {
            key: value if isinstance(value, list) else [value] for key, value in values.items()
        }
        self._check()

    def _check(self) -> None:
        parameters = {parameter.name: parameter for parameter in self.operation.parameters}
        _only(self.axes, tuple(parameters), f"{self.where} ({self.operation.name})")
        for key, values in self.axes.items():
            if not values:
                raise UsageError(f"{self.where}: key {key!r} is an empty list: give it a value")
            for value in values:
                sized = parameters[key].kind is Kind.BYTES
                if sized and isinstance(value, str) and value in MODEL_SIZES:
                    continue
                try:
                    parameters[key].parse(value)
                except UsageError as error:
                    words = f", or {', '.join(MODEL_SIZES)}: the model's" if sized else ""
                    raise UsageError(f"{self.where}: key {error}{words}") from None

    @property
    def count(self) -> int:
        """How many cases it makes."""
        own = math.prod(len(values) for values in self.axes.values())
        return own * (self.beside.count if self.beside else 1)

    def cases(self, geometry: KVGeometry) -> list[Case]:
        """Every combination, the last axis varying fastest; the load's faster still."""
        if self.count > MOST_CASES:
            raise UsageError(
                f"{self.where}: {self.count} combinations, at most {MOST_CASES}: sweep less"
            )
        points: list[dict[str, Value]] = [{}]
        for key, values in self.axes.items():
            points = [
                {**point, key: self._size(key, value, geometry)}
                for point in points
                for value in values
            ]
        loads = self.beside.cases(geometry) if self.beside else [None]
        try:
            alone = [self.operation.case(p, time_limit_s=self.time_limit_s) for p in points]
            return [replace(case, beside=load) for case in alone for load in loads]
        except UsageError as error:
            raise UsageError(f"{self.where}: {error}") from None

    def _size(self, key: str, value: Value, geometry: KVGeometry) -> Value:
        if not isinstance(value, str) or value not in MODEL_SIZES:
            return value
        parameter = next(p for p in self.operation.parameters if p.name == key)
        if parameter.kind is not Kind.BYTES:
            return value
        size_bytes = MODEL_SIZES[value](geometry)
        return whole_sectors(size_bytes) if parameter.multiple_of > 1 else size_bytes


def _build(
    path: Path, entries: Sequence[_Entry], geometry: KVGeometry, _machine: Machine
) -> list[Case]:
    cases = [case for entry in entries for case in entry.cases(geometry)]
    if len(cases) > MOST_CASES:
        raise UsageError(f"{path}: {len(cases)} cases, at most {MOST_CASES}: sweep less")
    limits: dict[str, float | None] = {}
    for case in cases:
        if limits.setdefault(case.id, case.time_limit_s) != case.time_limit_s:
            raise UsageError(f"{path}: {case.id} has two different time limits: give it one")
    return unique(cases)


def _plan(document: dict[str, Any], path: Path) -> Plan:
    plan = Plan()
    where = str(path)
    for parameter, field in ((PROCESSES, "processes"), (DATA, "data_bytes")):
        if parameter.name in document:
            try:
                number: Any = parameter.parse(document[parameter.name])
            except UsageError as error:
                raise UsageError(f"{where}: key {error}") from None
            plan = replace(plan, **{field: number})
    for key, field, most in (
        ("time_limit", "time_limit_s", DAY_S),
        ("warmup", "warmup_s", DAY_S),
        ("target", "target_half_width", 1.0),
    ):
        value: Any = _number(document.get(key), key, where, most)
        if value is not None:
            plan = replace(plan, **{field: value})
    return plan


def _number(value: object, key: str, where: str, most: float = DAY_S) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise UsageError(
            f"{where}: key {key!r} = {value!r}: expected a number above 0, at most {most:g}"
        )
    return float(value)


def _name(document: dict[str, Any], path: Path) -> str:
    """The suite's name, which becomes part of a file's."""
    name = _text(document, "name", path, default=re.sub(r"[^\w.-]", "-", path.stem))
    if not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise UsageError(
            f"{path}: key 'name' = {name!r}: expected up to 64 letters, digits, '.', '_' and '-'"
        )
    return name


def _text(document: dict[str, Any], key: str, path: Path, *, default: str) -> str:
    value = document.get(key, default)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{path}: key {key!r} = {value!r}: expected text")
    return value


def _only(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise UsageError(f"{where}: unknown key {key!r}; allowed are: {', '.join(allowed)}")
