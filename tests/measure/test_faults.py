"""Each fault is planted for real, and the row must refuse or flag it."""

import errno
import mmap
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, probe_machine
from kvbench.measure import worker
from kvbench.measure.pattern import Pattern
from kvbench.measure.result import ProcessResult, State
from kvbench.measure.rows import make_row
from kvbench.measure.runner import CaseFinished, ProcessStarted, Setting, limit_of, run_case
from kvbench.measure.suite import Case, Operation
from kvbench.measure.worker import Failure
from kvbench.units import KIB, MIB
from kvbench_suites.dram import COPY
from kvbench_suites.hbm import TRANSFER
from kvbench_suites.nvme import READ, WRITE
from kvbench_suites.nvme_bodies import ensure_file
from tests.conftest import QUICK, measure

READ_CASE = READ.case({"block_bytes": 256 * KIB, "queue_depth": 4})
WRITE_CASE = WRITE.case({"block_bytes": 256 * KIB, "queue_depth": 4})

pytestmark = pytest.mark.usefixtures("drive")


@pytest.fixture
def data(setting: Setting) -> Path:
    """The data file that a read case will find."""
    assert setting.scratch is not None
    path = setting.scratch / "read.dat"
    ensure_file(path, setting.plan.data_bytes, Pattern(setting.seed))
    return path


def flip_a_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def test_without_a_fault_the_row_is_ok_and_its_bytes_agree(setting: Setting, data: Path) -> None:
    row = measure(READ_CASE, setting)
    assert data.exists()
    assert (row.state, row.reason) == (State.OK, None)
    assert row.bytes_per_s is not None
    assert row.path_observed == "POSIX, O_DIRECT"
    assert row.payload_bytes == row.traffic_bytes
    assert row.processes[0].verified_bytes >= 256 * KIB
    assert row.processes[0].resident_before == 0.0
    if row.device_bytes is not None:
        assert row.device_bytes >= 0.99 * (row.payload_bytes or 0)


def test_a_warm_page_cache_makes_a_read_invalid(setting: Setting, data: Path) -> None:
    # Mapped pages survive posix_fadvise(DONTNEED), so the case cannot make its own file cold.
    with data.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        assert np.frombuffer(area, dtype=np.uint8)[::4096].sum() > 0
        row = measure(READ_CASE, setting)
    assert (row.state, row.reason_code) == (State.INVALID, "page_cache_resident")
    assert row.bytes_per_s is None
    assert "page cache" in row.missing["bytes_per_s"]


def test_a_short_read_is_no_fast_read(setting: Setting, data: Path) -> None:
    os.truncate(data, setting.plan.data_bytes // 2)
    row = measure(READ_CASE, setting)
    assert (row.state, row.reason_code) == (State.INVALID, "short_transfer")
    assert row.bytes_per_s is None
    assert row.reason is not None
    assert row.reason.startswith("short read: 0 of 262144 bytes")


def test_corrupted_data_is_found_whichever_block_it_is_in(setting: Setting, data: Path) -> None:
    # The last byte of the file: every block that was read is checked, not a sample of them.
    flip_a_bit(data, setting.plan.data_bytes - 1)
    plan = replace(setting.plan, time_limit_s=1.0, min_time_s=1.0)  # a whole pass and more
    row = measure(READ_CASE, replace(setting, plan=plan))
    assert (row.state, row.reason_code) == (State.INVALID, "corrupt_data")
    assert row.bytes_per_s is None


def test_a_result_above_the_limit_is_never_printed_as_one(setting: Setting, data: Path) -> None:
    assert data.exists()
    row = measure(READ_CASE, replace(setting, limits={"nvme": 1e6}))
    assert (row.state, row.reason_code) == (State.INVALID, "above_limit")
    assert (row.bytes_per_s, row.bytes_per_s_low, row.limit_fraction) == (None, None, None)
    assert row.limit_bytes_per_s == 1e6
    assert row.processes[0].bytes_per_s > 1e6, "what was seen stays as evidence"


def test_a_few_samples_give_no_p99(setting: Setting, data: Path) -> None:
    assert data.exists()
    case = READ.case({"block_bytes": 4 * MIB, "queue_depth": 1})
    plan = replace(setting.plan, time_limit_s=0.1, warmup_s=0.01)
    row = measure(case, replace(setting, plan=plan))
    assert row.latency_s is not None
    assert row.latency_s.count < 1000
    assert row.latency_s.p99 is None
    assert "1000 needed" in row.missing["latency_s.p99"]


def test_a_killed_worker_fails_its_row_and_says_so(setting: Setting) -> None:
    events = run_case(READ_CASE, replace(setting, plan=replace(setting.plan, time_limit_s=30.0)))
    killed = False
    row = None
    for event in events:
        if not killed and not isinstance(event, ProcessStarted):
            (child,) = psutil.Process().children()
            child.send_signal(signal.SIGKILL)
            killed = True
        if isinstance(event, CaseFinished):
            row = event.row
    assert row is not None
    assert (row.state, row.reason_code) == (State.FAILED, "worker_killed")
    assert row.reason is not None
    assert "SIGKILL" in row.reason
    assert row.bytes_per_s is None


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 24 MiB, by a loop device; only root can mount one."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(b"")
    os.truncate(image, 24 * MIB)
    mount.mkdir()
    made = subprocess.run(["mkfs.ext4", "-q", str(image)], check=False, capture_output=True)
    mounted = made.returncode == 0 and os.geteuid() == 0
    if mounted:
        command = ["mount", "-o", "loop", str(image), str(mount)]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs root, mkfs.ext4 and loop devices")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_fails_the_row_and_leaves_nothing_behind(
    setting: Setting, full_disk: Path
) -> None:
    plan = replace(setting.plan, data_bytes=64 * MIB)
    full = replace(setting, plan=plan, scratch=full_disk, machine=probe_machine(full_disk))
    row = measure(WRITE_CASE, full)
    assert (row.state, row.reason_code) == (State.FAILED, "disk_full")
    assert row.reason is not None
    assert "--data" in row.reason
    assert [path.name for path in full_disk.iterdir()] == ["lost+found"]


def test_a_directory_in_memory_is_no_drive(llama: KVGeometry) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir=shm) as directory:
        scratch = Path(directory)
        machine = probe_machine(scratch)
        setting = Setting(geometry=llama, machine=machine, plan=QUICK, scratch=scratch)
        row = measure(READ_CASE, setting)
        assert list(scratch.iterdir()) == []
    assert row.state is State.SKIPPED
    assert row.reason is not None
    assert "tmpfs is memory, not a drive" in row.reason


def test_reads_through_the_page_cache_are_flagged(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A filesystem without O_DIRECT, as the kernel shows it: EINVAL. In this process, so that the
    # refusal can be planted; the worker's code is the same.
    real_open = os.open

    def refuse_direct(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse_direct)
    found = run_here(READ_CASE, setting)
    assert isinstance(found, worker.Result)
    row = make_row(READ_CASE, [found.value], (None, "no link"), simulated=False)
    assert row.state in {State.DEGRADED, State.INVALID}
    if row.state is State.DEGRADED:
        assert row.reason == "asked for POSIX, O_DIRECT, the bytes went by POSIX, buffered"
    assert "no_direct_io" in {caution.code for caution in row.warnings}


def test_writes_that_read_back_differently_are_corrupt(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.pwritev

    def aligned_zeros(fd: int, buffers: Any, offset: int) -> int:
        if offset != 0 or len(buffers[0]) != 256 * KIB:
            return real_write(fd, buffers, offset)
        with mmap.mmap(-1, 256 * KIB) as zeros:  # page-aligned, as O_DIRECT wants it
            return real_write(fd, (zeros,), offset)

    monkeypatch.setattr(os, "pwritev", aligned_zeros)
    found = run_here(WRITE_CASE, replace(setting, plan=replace(QUICK, min_time_s=0.2)))
    assert isinstance(found, Failure)
    assert (found.state, found.code) == ("invalid", "corrupt_data")


def test_a_write_that_did_not_happen_is_found(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another case of the same run has written the file before, and in this one every write is
    # lost: what lies there must not pass for what should.
    assert isinstance(run_here(WRITE_CASE, setting), worker.Result)
    other = WRITE.case({"block_bytes": 256 * KIB, "queue_depth": 2})
    monkeypatch.setattr(os, "pwritev", lambda _fd, buffers, _offset: len(buffers[0]))
    found = run_here(other, setting)
    assert isinstance(found, Failure)
    assert found.code == "corrupt_data"


def test_a_write_lost_in_a_later_pass_is_found(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = WRITE.case({"block_bytes": 1 * MIB, "queue_depth": 1})
    passes = setting.plan.data_bytes // MIB
    real_write, seen = os.pwritev, 0

    def first_pass_only(fd: int, buffers: Any, offset: int) -> int:
        nonlocal seen
        if len(buffers[0]) != MIB:
            return real_write(fd, buffers, offset)  # the data file being made
        seen += 1
        return real_write(fd, buffers, offset) if seen <= passes else MIB

    monkeypatch.setattr(os, "pwritev", first_pass_only)
    found = run_here(case, replace(setting, plan=replace(QUICK, min_time_s=0.2)))
    assert seen > passes, "the case came round to its first block again"
    assert isinstance(found, Failure)
    assert found.code == "corrupt_data"


def test_a_read_that_brings_another_block_is_found_at_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, seen = os.preadv, 0

    def now_and_then_elsewhere(fd: int, buffers: Any, offset: int) -> int:
        nonlocal seen
        seen += 1
        wrong = 0 if offset else 256 * KIB
        return real_read(fd, buffers, wrong if seen == 20 else offset)

    monkeypatch.setattr(os, "preadv", now_and_then_elsewhere)
    found = run_here(READ_CASE, setting)
    assert isinstance(found, Failure)
    assert (found.state, found.code) == ("invalid", "corrupt_data")
    assert "what arrived is not block" in found.text


def test_an_engine_that_damages_what_it_reads_is_found(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read = os.preadv

    def flip(fd: int, buffers: Any, offset: int) -> int:
        done = real_read(fd, buffers, offset)
        if offset == 3 * 256 * KIB:
            buffers[0][100_000] ^= 1  # neither in the first sector nor in the last
        return done

    monkeypatch.setattr(os, "preadv", flip)
    plan = replace(QUICK, time_limit_s=0.5, min_time_s=0.5)  # a whole pass and more
    found = run_here(READ_CASE, replace(setting, plan=plan))
    assert isinstance(found, Failure)
    assert "XXH3-64 differs" in found.text


def test_a_drive_without_counters_is_not_simply_believed(setting: Setting) -> None:
    assert setting.machine.storage is not None
    blind = msgspec.structs.replace(setting.machine.storage, stat_path=None)
    machine = msgspec.structs.replace(setting.machine, storage=blind)
    row = measure(READ_CASE, replace(setting, machine=machine))
    assert (row.state, row.reason_code) == (State.DEGRADED, "unconfirmed")
    assert row.device_bytes is None
    assert "device_bytes" in row.missing


def test_a_users_limit_is_a_data_sheet_rate_of_traffic(setting: Setting) -> None:
    limited = replace(setting, limits={"dram": 40e9, "link": 50e9})
    copy = COPY.case({"block_bytes": MIB, "threads": 1})
    assert limit_of(copy, limited) == (20e9, "--limit dram ÷ 2: read and written")
    transfer = TRANSFER.case({"block_bytes": MIB, "direction": "h2d"})
    assert limit_of(transfer, limited) == (50e9, "--limit link")
    assert limit_of(transfer, replace(setting, limits={"hbm": 1e12}))[0] is None


def test_a_device_that_served_only_part_of_a_read_makes_it_invalid(machine: Machine) -> None:
    del machine
    process = ProcessResult(
        process=0,
        statistic="elapsed",
        bytes_per_s=1e9,
        payload_bytes=1000,
        traffic_bytes=1000,
        timed_bytes=900,
        elapsed_s=1.0,
        sample_bytes_per_s=[1e9] * 10,
        sample_count=10,
        warmup_samples=0,
        stopped_by="time",
        half_width=0.0,
        autocorrelation=0.0,
        slow_fraction=0.0,
        steady=True,
        device_bytes=400,
        resident_before=0.0,
        path_observed="POSIX, O_DIRECT",
    )
    row = make_row(READ_CASE, [process], (None, "no link"), simulated=False)
    assert (row.state, row.reason_code) == (State.INVALID, "device_bytes")
    assert row.reason is not None
    assert "only 40%" in row.reason


def run_here(case: Case, setting: Setting) -> worker.Result | Failure:
    """What a worker does, in this process."""
    assignment = worker.Assignment(
        body=case.operation.body,
        stream=case.operation.stream,
        traffic_per_payload=case.operation.traffic(case.params),
        params=dict(case.params),
        plan=setting.plan,
        geometry=setting.geometry,
        machine=setting.machine,
        seed=setting.seed,
        process=0,
        scratch=str(setting.scratch),
    )
    return worker.run(assignment, lambda _message: None)


def test_an_error_nobody_expected_reaches_the_row_with_its_last_line(setting: Setting) -> None:
    nobodys = Operation(
        name="dram.copy",
        meaning="a body that is not there",
        body="kvbench_suites.dram_bodies:NoSuchBody",
        parameters=(),
        label=lambda _params: "none",
        path=lambda _params: "none",
    )
    row = measure(nobodys.case({}), setting)
    assert (row.state, row.reason_code) == (State.FAILED, "worker_crashed")
    assert row.reason is not None
    assert "AttributeError" in row.reason


def test_one_process_that_the_drive_did_not_serve_spoils_the_row() -> None:
    def process(number: int, device_bytes: int) -> ProcessResult:
        return ProcessResult(
            process=number,
            statistic="elapsed",
            bytes_per_s=1e9,
            payload_bytes=1000,
            traffic_bytes=1000,
            timed_bytes=900,
            elapsed_s=1.0,
            sample_bytes_per_s=[1e9] * 10,
            sample_count=10,
            warmup_samples=0,
            stopped_by="time",
            half_width=0.0,
            autocorrelation=0.0,
            slow_fraction=0.0,
            steady=True,
            device_bytes=device_bytes,
            path_observed="POSIX, O_DIRECT",
        )

    done = [process(0, 1400), process(1, 1400), process(2, 0)]
    row = make_row(READ_CASE, done, (None, "no link"), simulated=False)
    assert (row.state, row.reason_code) == (State.INVALID, "device_bytes")
