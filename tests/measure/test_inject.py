"""Slowing cases on purpose: what is asked for, and that workers really do it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.inject import check_injection, format_share, injection_for, parse_injection
from kvbench.measure.result import State
from kvbench.measure.runner import Setting
from kvbench.measure.side import Side
from kvbench.measure.simulated import load_profile
from kvbench.measure.suite import Case, Operation
from kvbench.units import KIB, MIB
from kvbench_suites import OPERATIONS
from kvbench_suites.dram import COPY
from kvbench_suites.nvme import READ, WRITE
from tests.conftest import QUICK, measure

# Of a replay requests differ in size, and what is hit is not what was put: see its own tests.
STREAMS = [each for each in OPERATIONS if each.stream and not each.name.endswith(".replay")]
ON_A_DRIVE = [each for each in STREAMS if each.tier == "nvme"]
# `peer.fault` is one script of several seconds; the servers of others are not always there.
IN_MEMORY = [
    each for each in STREAMS if each.tier == "dram" or each.name in {"peer.get", "peer.lookup"}
]
REQUESTS = {"block_bytes": 256 * KIB, "batch": 4, "queue_depth": 2}
# What a stream operation needs besides its defaults. A new one has no line here and fails below.
STREAM_PARAMS = {
    "nvme.read": {"block_bytes": 64 * KIB, "queue_depth": 4},
    "nvme.write": {"block_bytes": 64 * KIB, "queue_depth": 4},
    "nvme.get": REQUESTS,
    "nvme.put": REQUESTS,
    "nvme.mixed": REQUESTS,
    "dram.get": REQUESTS,
    "dram.put": REQUESTS,
    "dram.mixed": REQUESTS,
    "dram.lookup": REQUESTS,
    "peer.get": {"block_bytes": 256 * KIB, "batch": 4},
    "peer.lookup": {},
}


def steady(llama: KVGeometry, **inject: float) -> Setting:
    profile = load_profile("steady")
    return Setting(geometry=llama, machine=Machine(), plan=QUICK, profile=profile, inject=inject)


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("text", "glob", "share"),
    [
        ("nvme.*=+8%", "nvme.*", 0.08),
        ("*=+0.5 %", "*", 0.005),
        ("dram.copy/*/t1=+1000%", "dram.copy/*/t1", 10.0),
        ("a=b=+5%", "a=b", 0.05),
    ],
)
def test_a_glob_and_a_share_are_read(text: str, glob: str, share: float) -> None:
    assert parse_injection([text]) == {glob: pytest.approx(share)}


@pytest.mark.parametrize(
    "text",
    ["nvme.*", "nvme.*=8%", "nvme.*=+8", "nvme.*=-8%", "=+8%", "nvme.*=+x%", "", "nvme.*=+٣%"],
)
def test_what_is_no_injection_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected GLOB=\+N%, such as 'nvme\.\*=\+8%'$"):
        parse_injection([text])


@pytest.mark.parametrize("text", ["*=+0%", "*=+0.0%", "*=+1000.1%"])
def test_a_share_of_nothing_or_of_too_much_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected above 0 % and at most 1000%$"):
        parse_injection([text])


def test_the_last_glob_that_matches_decides() -> None:
    found = parse_injection(["*=+5%", "nvme.*=+8%", "nvme.read/*=+20%"])
    assert injection_for("dram.copy/x", found) == pytest.approx(0.05)
    assert injection_for("nvme.write/x", found) == pytest.approx(0.08)
    assert injection_for("nvme.read/x", found) == pytest.approx(0.20)
    again = parse_injection(["*=+5%", "nvme.*=+8%", "*=+1%"])
    assert injection_for("nvme.read/x", again) == pytest.approx(0.01)
    assert injection_for("nvme.read/x", {"dram.*": 0.5}) == 0.0


def test_an_injection_that_slows_no_case_is_refused() -> None:
    check_injection({"nvme.*": 0.08}, ["dram.copy/a", "nvme.read/b"])
    with pytest.raises(UsageError, match=r"--inject 'nvmee\.\*=\+8 %' matches no case"):
        check_injection({"nvmee.*": 0.08}, ["nvme.read/b"])


def test_a_share_is_printed_as_it_was_asked_for() -> None:
    assert [format_share(share) for share in (0.08, 0.07, 0.005, 10.0)] == [
        "+8 %",
        "+7 %",
        "+0.5 %",
        "+1000 %",
    ]


# ---------------------------------------------------------------- that it is done

SIMULATED = [
    pytest.param(COPY.case({"block_bytes": MIB, "threads": 1}), id="steps"),
    pytest.param(READ.case({"block_bytes": MIB, "queue_depth": 16}), id="a stream"),
]


@pytest.mark.parametrize("case", SIMULATED)
def test_a_steady_device_slowed_by_8_percent_has_exactly_1_over_1_08_of_its_rate(
    llama: KVGeometry, case: Case
) -> None:
    plain = measure(case, steady(llama))
    slowed = measure(case, steady(llama, **{f"{case.operation.tier}.*": 0.08}))
    assert plain.bytes_per_s is not None
    assert slowed.bytes_per_s == pytest.approx(plain.bytes_per_s / 1.08, rel=1e-6)
    assert [each.inject for each in (*plain.processes, *slowed.processes)] == [0.0, 0.08]


def test_only_a_row_that_was_slowed_says_so(llama: KVGeometry) -> None:
    case = COPY.case({"block_bytes": MIB, "threads": 1})
    (caution,) = measure(case, steady(llama, **{"dram.*": 0.08})).warnings
    assert (caution.code, caution.message) == ("injected", "slowed by +8 % on purpose (--inject)")
    assert measure(case, steady(llama, **{"nvme.*": 0.08})).warnings == []


def test_latency_of_single_operations_stays_when_a_stream_is_slowed(llama: KVGeometry) -> None:
    case = READ.case({"block_bytes": MIB, "queue_depth": 16})
    plain = measure(case, steady(llama)).latency_s
    slowed = measure(case, steady(llama, **{"nvme.*": 1.0})).latency_s
    assert plain is not None
    assert slowed is not None
    assert slowed.p50 == plain.p50


def test_a_real_copy_slowed_by_100_percent_takes_about_twice_as_long(setting: Setting) -> None:
    case = COPY.case({"block_bytes": 8 * MIB, "threads": 1})
    plain = measure(case, setting)
    slowed = measure(case, replace(setting, inject={"dram.*": 1.0}))
    assert plain.bytes_per_s is not None
    assert slowed.bytes_per_s is not None
    assert 1.4 < plain.bytes_per_s / slowed.bytes_per_s < 2.9  # another load may come and go
    assert slowed.processes[0].inject == 1.0
    assert slowed.state is State.OK


@pytest.mark.usefixtures("drive")
@pytest.mark.parametrize("operation", ON_A_DRIVE, ids=lambda operation: operation.name)
def test_every_stream_slowed_by_100_percent_moves_twice_what_it_reports(
    setting: Setting, operation: Operation
) -> None:
    case = operation.case(STREAM_PARAMS[operation.name])
    for _attempt in range(4):  # another load on the drive is seen and said, and may go
        row = measure(case, replace(setting, inject={"*": 1.0}))
        if "other_traffic" not in {caution.code for caution in row.warnings}:
            break
    else:
        pytest.fail("other traffic in four measurements one after the other")
    (process,) = row.processes
    assert process.inject == 1.0
    assert row.state is State.OK, row.reason
    assert process.device_bytes is not None
    # Others may use the drive as well, so the upper end is loose.
    assert 1.95 < process.device_bytes / process.payload_bytes < 2.4
    assert process.verified_bytes > 0


@pytest.mark.parametrize("operation", IN_MEMORY, ids=lambda operation: operation.name)
def test_a_stream_in_memory_is_slowed_by_as_much_as_it_says(
    setting: Setting, operation: Operation
) -> None:
    case = operation.case(STREAM_PARAMS[operation.name])
    row = measure(case, replace(setting, inject={"*": 1.0}))
    assert row.state is State.OK, row.reason
    assert row.processes[0].inject == pytest.approx(1.0, rel=0.1)
    assert row.processes[0].verified_bytes > 0


@pytest.mark.usefixtures("drive")
def test_a_stream_slowed_by_8_percent_is_an_ordinary_row(setting: Setting) -> None:
    case = WRITE.case({"block_bytes": 64 * KIB, "queue_depth": 4})
    row = measure(case, replace(setting, inject={"nvme.*": 0.08}))
    assert row.state is State.OK, row.reason
    assert row.processes[0].inject == pytest.approx(0.08, rel=0.2)


def deaf(tmp_path: Path) -> Side:
    """An interpreter whose worker never hears of `inject`, as one of an older kvbench."""
    script = tmp_path / "deaf"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, subprocess, sys\n"
        "order = json.loads(sys.stdin.readline())\n"
        "del order['inject']\n"
        f"worker = subprocess.Popen([{sys.executable!r}, *sys.argv[1:]], stdin=subprocess.PIPE)\n"
        "worker.stdin.write(json.dumps(order).encode() + b'\\n')\n"
        "worker.stdin.flush()\n"
        "sys.exit(worker.wait())\n"
    )
    script.chmod(0o755)
    return Side(name="python:deaf", python=str(script))


def test_a_worker_that_ignores_the_injection_fails_the_row(
    llama: KVGeometry, tmp_path: Path
) -> None:
    case = COPY.case({"block_bytes": MIB, "threads": 1})
    setting = replace(steady(llama, **{"dram.*": 0.08}), side=deaf(tmp_path))
    row = measure(case, setting)
    assert (row.state, row.reason_code) == (State.FAILED, "inject_ignored")
    assert row.reason is not None
    assert row.reason.startswith("asked to be slowed by +8 %, the worker was by +0 %:")
    assert measure(case, replace(setting, inject={})).state is State.SIMULATED


def test_an_answer_that_cannot_be_read_fails_the_row_and_not_the_run(
    llama: KVGeometry, tmp_path: Path
) -> None:
    script = tmp_path / "babble"
    script.write_text(f"#!/bin/sh\necho '{json.dumps({'type': 'poem'})}'\nexec sleep 30\n")
    script.chmod(0o755)
    case = COPY.case({"block_bytes": MIB, "threads": 1})
    side = Side(name="python:babble", python=str(script))
    row = measure(case, replace(steady(llama), side=side))
    assert (row.state, row.reason_code) == (State.FAILED, "protocol")


# ---------------------------------------------------------------- a process's own p99


def test_a_process_states_its_p99_only_with_the_samples_for_it(llama: KVGeometry) -> None:
    noisy = replace(steady(llama), profile=load_profile("noisy"))
    many = measure(READ.case({"block_bytes": 4 * KIB, "queue_depth": 16}), noisy)
    few = measure(READ.case({"block_bytes": 16 * MIB, "queue_depth": 1}), noisy)
    # Of one process, so the row's p99 is its own; the row's comes from a histogram with 0.1 %.
    assert many.latency_s is not None
    assert many.latency_s.p99 is not None
    assert many.latency_s.p50 is not None
    assert many.latency_s.p99 > 1.05 * many.latency_s.p50
    assert many.processes[0].latency_effective_count >= 1000
    assert many.processes[0].latency_p99_s == pytest.approx(many.latency_s.p99, rel=2e-3)
    assert 0 < few.processes[0].latency_effective_count < 1000
    assert few.processes[0].latency_p99_s is None
