"""A case that is measured while another one loads the machine."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, Storage, shell_quoted
from kvbench.measure import load
from kvbench.measure.pairs import PairedSession
from kvbench.measure.result import Report, State, decode_report, encode_report
from kvbench.measure.runner import (
    CaseFinished,
    Event,
    ProcessStarted,
    Progress,
    Setting,
    data_files,
    run_case,
    unrunnable,
)
from kvbench.measure.session import select
from kvbench.measure.side import Side
from kvbench.measure.simulated import load_profile
from kvbench.measure.suite import Case, Kind, Operation, Parameter
from kvbench.measure.worker import Assignment, Estimate, Phase
from kvbench.units import KIB, MIB
from kvbench_suites.dram import COPY, GATHER
from kvbench_suites.hbm import TRANSFER
from kvbench_suites.nvme import READ, WRITE
from tests.conftest import QUICK, measure

# Bodies that leave notes: the load its process and how far it is, the case what it saw of that.
BODIES = '''
import json, os, time
import numpy as np
from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Completions, Observed


class Fake:
    clock = "host"
    def set_up(self, context):
        self.at, self.how = context.scratch, context.params["how"]
    def verify(self): return 0
    def observed(self): return Observed(path="fake")
    def tear_down(self): pass
    def measuring(self): return (self.at / "measuring").exists()


class Busy(Fake):
    """1 MiB a step; slower once the case is measured, so that its rate before is another one."""
    steps = 0
    def set_up(self, context):
        super().set_up(context)
        (self.at / "pid").write_text(str(os.getpid()))
        if self.how == "unavailable":
            raise TierUnavailableError("the tier is not there today")
        if self.how == "late":
            time.sleep(2)
        self.count = np.memmap(self.at / "count", dtype=np.int64, mode="w+", shape=(1,))
    def step(self):
        measuring = self.measuring()
        if measuring and self.how == "killed":
            os.kill(os.getpid(), 9)
        if measuring and self.how == "corrupt":
            raise CorruptDataError("what arrived is not block 7")
        time.sleep(60 if measuring and self.how == "silent" else 0.01 if measuring else 0.001)
        self.steps += 1
        self.count[0] = self.steps
        return 2**20


class Stalling(Fake):
    """A stream of which nothing completes any more once the case is measured."""
    operation_bytes = 2**20
    def start(self): pass
    def stop(self): pass
    def watch(self): return None
    def slowed(self): return 0.0
    def poll(self, wait_s):
        time.sleep(wait_s)
        done = np.zeros(0 if self.measuring() else 1, dtype=np.int64)
        return Completions(done, done)


class Flowing(Stalling):
    def set_up(self, context):
        super().set_up(context)
        (self.at / "slowdown").write_text(str(context.slowdown))
    def measuring(self): return False


class Watching(Fake):
    """The case: looks at the load in every step."""
    def set_up(self, context):
        super().set_up(context)
        self.seen = []
    def step(self):
        (self.at / "measuring").touch()
        if self.how == "corrupt" and len(self.seen) > 5:
            raise CorruptDataError("a byte differs")
        time.sleep(0.005)
        pid = int((self.at / "pid").read_text()) if (self.at / "pid").exists() else 0
        count = np.memmap(self.at / "count", dtype=np.int64, mode="r") if pid else [0]
        self.seen.append((time.monotonic(), os.path.exists(f"/proc/{pid}"), int(count[0])))
        return 2**20
    def verify(self):
        time.sleep(0.3)  # the load is ended meanwhile
        if not (self.at / "pid").exists(): return 0
        pid = int((self.at / "pid").read_text())
        notes = {"seen": self.seen, "while_checking": os.path.exists(f"/proc/{pid}/cmdline")
                 and bool(open(f"/proc/{pid}/cmdline", "rb").read())}
        (self.at / "notes").write_text(json.dumps(notes))
        return 0
'''
HOW = Parameter(
    name="how",
    kind=Kind.CHOICE,
    meaning="what becomes of it",
    choices=("well", "late", "killed", "corrupt", "unavailable", "silent"),
    default="well",
)


def operation(name: str, body: str, **more: Any) -> Operation:
    return Operation(
        name=name,
        meaning="for tests",
        body=f"bodies_of_test:{body}",
        parameters=(HOW,),
        label=lambda params: str(params["how"]),
        path=lambda _params: "fake",
        **more,
    )


WATCHING = operation("dram.watch", "Watching")
BUSY = operation("hbm.busy", "Busy")
CASE = WATCHING.case({})
LOADED = replace(CASE, beside=BUSY.case({}))


def beside(how: str, *, case: Case = CASE) -> Case:
    return replace(case, beside=BUSY.case({"how": how}))


@pytest.fixture
def fake(setting: Setting, tmp_path: Path) -> Setting:
    """Workers find the bodies above; longer than the load needs to be told of twice."""
    path = tmp_path / "modules"
    path.mkdir()
    (path / "bodies_of_test.py").write_text(BODIES)
    side = Side(name="env:", python=sys.executable, environ={"PYTHONPATH": str(path)})
    plan = replace(QUICK, time_limit_s=0.6, min_time_s=0.6, warmup_s=0.2)
    return replace(setting, side=side, plan=plan)


@pytest.fixture
def is_gone(tmp_path: Path) -> Callable[[], bool]:
    """Whether the load's process, which was there, is there no more."""

    def look() -> bool:
        try:
            process = psutil.Process(int((tmp_path / "pid").read_text()))
            return process.status() == psutil.STATUS_ZOMBIE  # dead, and its parent was killed
        except psutil.NoSuchProcess:
            return True

    return look


# ---------------------------------------------------------------- a load that runs


def test_the_load_runs_from_the_first_step_to_the_last_and_not_while_data_are_checked(
    fake: Setting, tmp_path: Path, is_gone: Callable[[], bool]
) -> None:
    row = measure(beside("late"), fake)
    assert (row.state, row.reason) == (State.OK, None)
    assert (row.id, row.beside) == ("dram.watch/well+hbm.busy/late", "hbm.busy/late")
    notes = json.loads((tmp_path / "notes").read_text())
    assert len(notes["seen"]) > 20
    assert all(alive for _, alive, _ in notes["seen"])
    counts = [count for _, _, count in notes["seen"]]
    assert counts[0] > 0, "it had moved bytes before the first step"
    assert counts[-1] > counts[len(counts) // 2] > counts[0]
    assert notes["while_checking"] is False
    assert is_gone()


def test_the_loads_rate_is_that_of_the_time_in_which_the_case_was_measured(
    fake: Setting, tmp_path: Path
) -> None:
    # Alone it is ten times faster: what it did before must not be mixed in.
    (process,) = measure(LOADED, fake).processes
    seen = json.loads((tmp_path / "notes").read_text())["seen"]
    (first_s, _, first), (last_s, _, last) = seen[len(seen) // 4], seen[-1]  # without warm-up
    truth = (last - first) * MIB / (last_s - first_s)
    assert process.load_bytes_per_s is not None
    assert 0.75 * truth < process.load_bytes_per_s < 1.33 * truth


def test_a_case_alone_has_no_load_in_its_row(fake: Setting) -> None:
    row = measure(CASE, fake)
    assert row.state is State.OK
    assert row.beside is None
    assert row.processes[0].load_bytes_per_s is None


def test_every_process_of_a_row_has_a_load_of_its_own(fake: Setting) -> None:
    row = measure(LOADED, replace(fake, plan=replace(fake.plan, processes=2)))
    assert row.state is State.OK
    assert all((each.load_bytes_per_s or 0) > 0 for each in row.processes)


def test_slowing_a_case_on_purpose_leaves_its_load_alone(fake: Setting, tmp_path: Path) -> None:
    streaming = replace(CASE, beside=operation("nvme.flow", "Flowing", stream=True).case({}))
    row = measure(streaming, replace(fake, inject={"nvme.*": 0.5, "dram.*": 0.25}))
    assert row.state is State.OK
    assert row.processes[0].inject == 0.25
    assert (tmp_path / "slowdown").read_text() == "0.0"


def test_both_sides_of_a_pair_are_loaded(fake: Setting, tmp_path: Path) -> None:
    session = PairedSession("mine", [LOADED], (fake, fake), ())
    list(session.run(tmp_path / "a.json", tmp_path / "b.json"))
    for report in (session.base, session.new):
        (row,) = report.rows
        assert row.state is State.OK
        assert (row.processes[0].load_bytes_per_s or 0) > 0


@pytest.mark.usefixtures("drive")
@pytest.mark.parametrize(
    ("case", "beside"),
    [
        (
            COPY.case({"block_bytes": 2 * MIB, "threads": 1}),
            READ.case({"block_bytes": 256 * KIB, "queue_depth": 4}),
        ),
        (
            READ.case({"block_bytes": 256 * KIB, "queue_depth": 4}),
            WRITE.case({"block_bytes": 256 * KIB, "queue_depth": 4}),
        ),
    ],
    ids=lambda case: case.operation.name,
)
def test_real_tiers_load_each_other_and_the_rows_are_good(
    setting: Setting, case: Case, beside: Case
) -> None:
    plan = replace(setting.plan, time_limit_s=0.4, min_time_s=0.4)
    row = measure(replace(case, beside=beside), replace(setting, plan=plan))
    assert (row.state, row.reason) == (State.OK, None)
    assert (row.bytes_per_s or 0) > 0
    assert (row.processes[0].load_bytes_per_s or 0) > MIB
    assert "other_traffic" not in {each.code for each in row.warnings}


# ---------------------------------------------------------------- a load that does not


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("killed", "worker ended by SIGKILL in “load”"),
        ("corrupt", "what arrived is not block 7"),
    ],
)
def test_a_load_that_dies_fails_the_row_and_says_so(
    fake: Setting, is_gone: Callable[[], bool], how: str, why: str
) -> None:
    row = measure(beside(how), fake)
    assert (row.state, row.reason_code) == (State.FAILED, "load")
    assert row.reason is not None
    assert row.reason.startswith(f"the load hbm.busy/{how} ended: {why}")
    assert row.bytes_per_s is None
    assert row.beside == f"hbm.busy/{how}"
    assert is_gone()


def test_a_load_that_dies_between_two_words_of_the_worker_is_noticed_at_the_end(
    fake: Setting, tmp_path: Path, is_gone: Callable[[], bool]
) -> None:
    orders = msgspec.json.decode(orders_of(BUSY.case({"how": "killed"}), fake), type=Assignment)
    with load.Load("hbm.busy/killed", orders, fake.side, set_up_s=60) as running:
        assert running.wait_until_running() is None
        assert running.follow(Phase("measure")) is None
        time.sleep(fake.plan.warmup_s + 0.2)
        (tmp_path / "measuring").touch()
        while not is_gone():
            time.sleep(0.01)
        ended = running.follow(Phase("verify"))
    assert ended is not None
    assert ended.text.startswith("the load hbm.busy/killed ended: worker ended by SIGKILL")
    assert running.bytes_per_s is None


def test_a_window_that_nobody_saw_gives_no_rate(fake: Setting) -> None:
    # A terminal that is held by Ctrl-S lets no word be read until it goes on.
    orders = msgspec.json.decode(orders_of(BUSY.case({}), fake), type=Assignment)
    with load.Load("hbm.busy/well", orders, fake.side, set_up_s=60) as running:
        assert running.wait_until_running() is None
        assert running.follow(Phase("measure")) is None
        unknown = running.follow(Phase("verify"))
    assert unknown is not None
    assert unknown.text == "the rate of the load hbm.busy/well is not known: this run was held up"


def test_a_load_that_falls_silent_fails_the_row(
    fake: Setting, is_gone: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "LAST_WORD_S", 0.5)
    monkeypatch.setattr(load, "PATIENCE_S", 0.1)
    row = measure(beside("silent"), fake)
    assert row.state is State.FAILED
    assert row.reason is not None
    assert row.reason.startswith("the load hbm.busy/silent ended: it has told nothing for")
    assert is_gone()


def test_a_load_that_moves_nothing_is_no_load(fake: Setting) -> None:
    stalling = operation("nvme.stall", "Stalling", stream=True)
    row = measure(replace(CASE, beside=stalling.case({})), fake)
    assert row.state is State.FAILED
    assert row.reason == (
        "the load nvme.stall/well ended: it moved nothing while this was measured"
    )


def test_a_load_that_this_machine_cannot_run_skips_the_row_with_its_reason(
    fake: Setting, is_gone: Callable[[], bool]
) -> None:
    row = measure(beside("unavailable"), fake)
    assert (row.state, row.reason_code) == (State.SKIPPED, "load")
    assert row.reason == "its load cannot run: the tier is not there today"
    assert is_gone()


def test_a_load_that_is_known_to_be_unmet_is_not_even_tried(fake: Setting, tmp_path: Path) -> None:
    lacking = operation("hbm.busy", "Busy", unmet=lambda _params, _machine: "no CUDA device")
    events = list(run_case(replace(CASE, beside=lacking.case({})), fake))
    assert not any(isinstance(event, ProcessStarted) for event in events)
    last = events[-1]
    assert isinstance(last, CaseFinished)
    assert (last.row.state, last.row.reason_code) == (State.SKIPPED, "unmet")
    assert last.row.reason == "its load cannot run: no CUDA device"
    assert not (tmp_path / "pid").exists()


def test_a_simulated_device_is_never_said_to_be_loaded(llama: KVGeometry) -> None:
    profile = load_profile("steady")
    setting = Setting(geometry=llama, machine=Machine(), plan=QUICK, profile=profile)
    copy = COPY.case({"block_bytes": MIB, "threads": 1})
    row = unrunnable(
        replace(copy, beside=READ.case({"block_bytes": MIB, "queue_depth": 1})), setting
    )
    assert row is not None
    assert row.state is State.SKIPPED
    assert unrunnable(copy, setting) is None


# ---------------------------------------------------------------- it is gone afterwards


def test_the_load_is_gone_after_its_case_has_failed(
    fake: Setting, is_gone: Callable[[], bool]
) -> None:
    row = measure(beside("well", case=WATCHING.case({"how": "corrupt"})), fake)
    assert (row.state, row.reason) == (State.INVALID, "a byte differs")
    assert is_gone()


@pytest.mark.parametrize("message", [Phase("set up"), Phase("measure"), Estimate])
def test_the_load_is_gone_after_an_interruption(
    fake: Setting, is_gone: Callable[[], bool], message: object
) -> None:
    events = run_case(LOADED, fake)
    for event in events:
        if isinstance(event, Progress) and (
            event.message == message or type(event.message) is message
        ):
            break
    with pytest.raises(KeyboardInterrupt):
        cast("Generator[Event]", events).throw(KeyboardInterrupt)
    assert is_gone()


def test_the_load_is_gone_after_its_run_was_killed(
    fake: Setting, tmp_path: Path, is_gone: Callable[[], bool]
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, pathlib, time\n"
        "from kvbench.measure.child import Child\n"
        "orders = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "with Child('kvbench.measure.load_worker', orders, None, None) as child:\n"
        "    child.deadline_s = time.monotonic() + 60\n"
        "    for line in child.lines(): print(line.decode(), flush=True)\n"
    )
    orders = tmp_path / "orders.json"
    orders.write_bytes(orders_of(BUSY.case({}), fake))
    assert fake.side is not None
    environ = {**os.environ, **fake.side.environ}
    with subprocess.Popen(
        [sys.executable, str(script), str(orders)], stdout=subprocess.PIPE, text=True, env=environ
    ) as run:
        assert run.stdout is not None
        assert [json.loads(line)["type"] for line in itertools.islice(run.stdout, 3)] == [
            "moved",
            "moved",
            "moved",
        ]
        assert not is_gone()
        run.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 20
    while not is_gone() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert is_gone()


def orders_of(case: Case, setting: Setting) -> bytes:
    return msgspec.json.encode(
        Assignment(
            body=case.operation.body,
            stream=False,
            traffic_per_payload=1.0,
            params=dict(case.params),
            plan=setting.plan,
            geometry=setting.geometry,
            machine=setting.machine,
            seed=1,
            process=0,
            scratch=str(setting.scratch),
        )
    )


# ---------------------------------------------------------------- what can be a load


READ_CASE = READ.case({"block_bytes": MIB, "queue_depth": 1})
COPY_CASE = COPY.case({"block_bytes": MIB, "threads": 1})


def test_a_load_makes_another_case_by_id_and_by_definition() -> None:
    other = READ.case({"block_bytes": MIB, "queue_depth": 2})
    cases = [COPY_CASE, *(replace(COPY_CASE, beside=each) for each in (READ_CASE, other))]
    assert [case.id for case in cases] == [
        "dram.copy/pageable/1MiB/t1",
        "dram.copy/pageable/1MiB/t1+nvme.read/posix/1MiB/qd1/random",
        "dram.copy/pageable/1MiB/t1+nvme.read/posix/1MiB/qd2/random",
    ]
    assert len({case.definition_hash for case in cases}) == 3
    hidden = replace(READ_CASE, params={**READ_CASE.params, "not in the id": 1})
    assert hidden.id == READ_CASE.id
    loaded = [replace(COPY_CASE, beside=each).definition_hash for each in (READ_CASE, hidden)]
    assert loaded[0] != loaded[1], "the load's definition is part of it, not its id alone"


def test_an_id_with_a_load_needs_no_quotes_and_is_no_pattern() -> None:
    loaded = replace(COPY_CASE, beside=READ_CASE)
    assert shell_quoted(loaded.id) == loaded.id
    cases = [COPY_CASE, loaded, READ_CASE]
    assert select(cases, [loaded.id]) == [loaded]
    assert select(cases, [COPY_CASE.id]) == [COPY_CASE]
    assert select(cases, ["dram.*"]) == [COPY_CASE, loaded]
    assert select(cases, ["*+nvme.*"]) == [loaded]


@pytest.mark.parametrize(
    ("case", "beside", "why"),
    [
        (
            WRITE.case({"block_bytes": MIB, "queue_depth": 1}),
            WRITE.case({"block_bytes": MIB, "queue_depth": 2}),
            "nvme.write beside nvme.write: both would use one data file and the same counters of "
            "the drive; name another operation as load",
        ),
        (
            COPY_CASE,
            GATHER.case({"block_bytes": MIB, "page_bytes": KIB, "threads": 1}),
            "dram.copy beside dram.gather: the threads of both would be pinned to the same cores; "
            "name a load without threads",
        ),
        (
            COPY_CASE,
            replace(READ_CASE, beside=TRANSFER.case({"block_bytes": MIB, "direction": "h2d"})),
            "dram.copy beside nvme.read: the load has a load of its own; name one load",
        ),
    ],
)
def test_what_cannot_be_a_load_is_refused_in_one_line(case: Case, beside: Case, why: str) -> None:
    with pytest.raises(UsageError) as raised:
        replace(case, beside=beside)
    assert str(raised.value) == why


def test_the_data_files_of_case_and_load_are_both_counted(llama: KVGeometry) -> None:
    machine = Machine(storage=Storage(filesystem="ext4", device_kind="nvme"))
    setting = Setting(geometry=llama, machine=machine, plan=QUICK)
    write = WRITE.case({"block_bytes": MIB, "queue_depth": 1})
    transfer = TRANSFER.case({"block_bytes": MIB, "direction": "h2d"})
    assert data_files(COPY_CASE, setting) == set()
    assert data_files(READ_CASE, setting) == {"nvme.read"}
    assert data_files(replace(COPY_CASE, beside=write), setting) == {"nvme.write"}
    assert data_files(replace(READ_CASE, beside=write), setting) == {"nvme.read", "nvme.write"}
    # Not for a case that will be skipped: no GPU here.
    assert data_files(replace(READ_CASE, beside=transfer), setting) == set()


def test_a_report_from_before_there_were_loads_is_read_as_without(fake: Setting) -> None:
    report = Report(
        kvbench_version="0",
        session_id="",
        suite="mine",
        command=[],
        started_at="",
        plan={},
        machine=fake.machine,
        model=fake.geometry,
        rows=[measure(LOADED, fake)],
    )
    raw = json.loads(encode_report(report))
    del raw["rows"][0]["beside"], raw["rows"][0]["processes"][0]["load_bytes_per_s"]
    (row,) = decode_report(json.dumps(raw).encode(), "old").rows
    assert (row.beside, row.processes[0].load_bytes_per_s) == (None, None)
