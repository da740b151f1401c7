from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.machine import Machine
from kvbench.measure.result import State
from kvbench.measure.rows import empty_row
from kvbench.measure.suite import Case, Kind, Operation, Parameter, Value, sweep
from kvbench.units import KIB, MIB

SIZE = Parameter(
    name="block_bytes",
    kind=Kind.BYTES,
    meaning="bytes of one operation",
    least=4096,
    most=64 * MIB,
    multiple_of=4096,
)
COUNT = Parameter(name="queue_depth", kind=Kind.COUNT, meaning="in flight", most=1024)
NODE = Parameter(name="node", kind=Kind.COUNT, meaning="-1 is any", least=-1, default=-1)
CHOICE = Parameter(
    name="engine",
    kind=Kind.CHOICE,
    meaning="who",
    choices=("posix", "kvikio"),
    default="posix",
)
FLAG = Parameter(name="fsync", kind=Kind.FLAG, meaning="durable", default=False)


def both_flag_and_engine(params: Any) -> str | None:
    if params["fsync"] and params["engine"] != "posix":
        return "fsync = true: only engine = 'posix'"
    return None


READ = Operation(
    name="nvme.read",
    meaning="read",
    body="some.module:Read",
    parameters=(SIZE, COUNT, NODE, CHOICE, FLAG),
    label=lambda params: f"{params['engine']}/{params['block_bytes']}/qd{params['queue_depth']}",
    path=lambda params: str(params["engine"]),
    contradiction=both_flag_and_engine,
)
LEAST = {"block_bytes": "4KiB", "queue_depth": 1}


# ---------------------------------------------------------------- one parameter


@pytest.mark.parametrize(
    ("parameter", "raw", "value"),
    [
        (SIZE, 4096, 4096),
        (SIZE, 64 * MIB, 64 * MIB),
        (SIZE, "256KiB", 256 * KIB),
        (SIZE, "4096", 4096),
        (COUNT, 1, 1),
        (COUNT, 1024, 1024),
        (NODE, -1, -1),
        (NODE, 0, 0),
        (CHOICE, "kvikio", "kvikio"),
        (FLAG, True, True),
        (FLAG, False, False),
    ],
)
def test_an_allowed_value_is_kept_in_base_units(
    parameter: Parameter, raw: object, value: Value
) -> None:
    found = parameter.parse(raw)
    assert found == value
    assert type(found) is type(value)


SIZES = "a size such as 256KiB, at least 4096, at most 67108864, a multiple of 4096"
COUNTS = "a whole number, at least 1, at most 1024"


@pytest.mark.parametrize(
    ("parameter", "raw", "expected"),
    [
        *((SIZE, raw, SIZES) for raw in (0, 4095, 6144, 64 * MIB + 4096, -4096)),
        *((SIZE, raw, SIZES) for raw in ("5KiB", "128MiB", "fast", "", "1.5", 4096.0, True, None)),
        *((SIZE, raw, SIZES) for raw in (["4KiB"], {"block": 1}, b"4096")),
        *((COUNT, raw, COUNTS) for raw in (0, 1025, -1, 16.0, "16", "", True, None, [1])),
        (NODE, -2, "a whole number, at least -1"),
        (NODE, 2**63, "a whole number, at least -1"),
        *(
            (CHOICE, raw, "one of posix, kvikio")
            for raw in ("POSIX", "uring", "", 1, None, ["posix"])
        ),
        *((FLAG, raw, "true or false") for raw in ("true", "yes", 0, 1, None)),
    ],
)
def test_any_other_value_is_refused_with_what_was_seen_and_all_that_is_allowed(
    parameter: Parameter, raw: object, expected: str
) -> None:
    with pytest.raises(UsageError) as raised:
        parameter.parse(raw)
    assert str(raised.value) == f"{parameter.name} = {raw!r}: expected {expected}"


@given(st.integers())
def test_a_size_is_taken_exactly_inside_its_bounds(raw: int) -> None:
    if 4096 <= raw <= 64 * MIB and raw % 4096 == 0:
        assert SIZE.parse(raw) == raw
    else:
        with pytest.raises(UsageError):
            SIZE.parse(raw)


# ---------------------------------------------------------------- a case


def test_a_case_has_a_value_for_every_parameter_given_or_by_default() -> None:
    case = READ.case({**LEAST, "fsync": True})
    assert case.params == {
        "block_bytes": 4096,
        "queue_depth": 1,
        "node": -1,
        "engine": "posix",
        "fsync": True,
    }
    assert case.id == "nvme.read/posix/4096/qd1"
    assert case.operation.tier == "nvme"
    assert case.time_limit_s is None
    assert READ.case(LEAST, time_limit_s=2.5).time_limit_s == 2.5


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {**LEAST, "blok_bytes": 1},
            "nvme.read has no parameter 'blok_bytes'; "
            "it has block_bytes, queue_depth, node, engine, fsync",
        ),
        ({"queue_depth": 1}, f"nvme.read needs block_bytes: {SIZES}"),
        ({"block_bytes": 4096}, f"nvme.read needs queue_depth: {COUNTS}"),
        ({**LEAST, "engine": "uring"}, "engine = 'uring': expected one of posix, kvikio"),
        (
            {**LEAST, "engine": "kvikio", "fsync": True},
            "nvme.read: fsync = true: only engine = 'posix'",
        ),
    ],
)
def test_parameters_that_are_unknown_missing_wrong_or_at_odds_are_refused(
    raw: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        READ.case(raw)
    assert str(raised.value) == message


def test_checking_does_not_change_what_was_given() -> None:
    raw: dict[str, object] = {"block_bytes": "4KiB", "queue_depth": 1}
    READ.case(raw)
    assert raw == {"block_bytes": "4KiB", "queue_depth": 1}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("block_bytes", 8192),
        ("queue_depth", 2),
        ("node", 0),
        ("engine", "kvikio"),
        ("fsync", True),
    ],
)
def test_each_parameter_alone_changes_the_definition(name: str, other: Value) -> None:
    # Also `node` and `fsync`, which this operation's id does not show.
    assert READ.case({**LEAST, name: other}).definition_hash != READ.case(LEAST).definition_hash


def test_another_body_or_operation_is_another_definition() -> None:
    usual = READ.case(LEAST).definition_hash
    assert replace(READ, body="other:Read").case(LEAST).definition_hash != usual
    assert replace(READ, name="nvme.write").case(LEAST).definition_hash != usual


def test_a_definition_does_not_depend_on_how_its_parameters_were_written() -> None:
    usual = READ.case(LEAST).definition_hash
    written = {"engine": "posix", "queue_depth": 1, "block_bytes": 4096}
    assert READ.case(written).definition_hash == usual
    # How long it is measured does not change what is measured.
    assert READ.case(LEAST, time_limit_s=9).definition_hash == usual


def test_a_definition_is_the_same_in_every_version_so_that_reports_can_be_compared() -> None:
    case = READ.case(LEAST)
    assert case.definition_hash == "843766b0363a7a9f"


def test_an_operation_says_nothing_against_itself_unless_it_is_told_to() -> None:
    plain = Operation(
        name="dram.copy",
        meaning="copy",
        body="m:C",
        parameters=(),
        label=lambda _params: "all",
        path=lambda _params: "memcpy",
    )
    case = plain.case({})
    assert case.id == "dram.copy/all"
    assert plain.unmet(case.params, Machine()) is None
    assert plain.limit(case.params, Machine())[0] is None


# ---------------------------------------------------------------- a sweep


def points(cases: list[Case]) -> list[tuple[Value, ...]]:
    names = ("block_bytes", "queue_depth", "engine", "fsync")
    return [tuple(case.params[name] for name in names) for case in cases]


def test_a_sweep_is_every_combination_the_last_axis_varying_fastest() -> None:
    cases = sweep(READ, block_bytes=[4096, 8192], queue_depth=(1, 4), engine=("kvikio", "posix"))
    assert points(cases) == [
        (4096, 1, "kvikio", False),
        (4096, 1, "posix", False),
        (4096, 4, "kvikio", False),
        (4096, 4, "posix", False),
        (8192, 1, "kvikio", False),
        (8192, 1, "posix", False),
        (8192, 4, "kvikio", False),
        (8192, 4, "posix", False),
    ]


def test_the_axes_are_swept_in_the_order_they_are_given() -> None:
    cases = sweep(READ, queue_depth=(1, 4), block_bytes=(4096, 8192))
    assert [case.params["block_bytes"] for case in cases] == [4096, 8192, 4096, 8192]


def test_a_lone_value_is_an_axis_of_one_also_a_word_or_a_flag() -> None:
    cases = sweep(READ, block_bytes="4KiB", queue_depth=7, engine="posix", fsync=True)
    assert points(cases) == [(4096, 7, "posix", True)]


def test_an_axis_can_be_used_up_only_once() -> None:
    cases = sweep(READ, block_bytes=4096, queue_depth=(depth for depth in (1, 2, 3)))
    assert [case.params["queue_depth"] for case in cases] == [1, 2, 3]


def test_an_axis_without_values_leaves_no_case() -> None:
    assert sweep(READ, block_bytes=4096, queue_depth=()) == []


def test_one_wrong_value_in_a_sweep_is_refused() -> None:
    with pytest.raises(UsageError, match="queue_depth = 0"):
        sweep(READ, block_bytes=4096, queue_depth=(1, 0))


# ---------------------------------------------------------------- text, and what it stands for


TRACE = Parameter(
    name="trace",
    kind=Kind.TEXT,
    meaning="a path",
    default="none",
    stands_for=lambda value: str(value).rpartition("/")[2],
)


@pytest.mark.parametrize("raw", ["synthetic", "/data/my trace.jsonl", "block", "256KiB", "é"])
def test_text_is_kept_as_it_is(raw: str) -> None:
    assert TRACE.parse(raw) == raw


@pytest.mark.parametrize("raw", ["", "  ", "two\nlines", "a\x00", 1, True, None, ["a"]])
def test_what_is_no_text_on_one_line_is_refused(raw: object) -> None:
    with pytest.raises(UsageError) as raised:
        TRACE.parse(raw)
    assert str(raised.value) == f"trace = {raw!r}: expected text on one line"


def test_a_case_is_compared_and_told_by_what_its_values_stand_for() -> None:
    operation = replace(READ, parameters=(*READ.parameters, TRACE))
    here, there, other = (
        operation.case({**LEAST, "trace": path}) for path in ("/a/t", "/home/anna/t", "/a/u")
    )
    assert here.params["trace"] == "/a/t", "the worker has to open it"
    assert here.meant == {**here.params, "trace": "t"}
    assert here.definition_hash == there.definition_hash != other.definition_hash
    assert empty_row(there, State.SKIPPED, "", "").params["trace"] == "t"
