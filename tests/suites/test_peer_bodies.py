"""Cases of peers: that blocks come from other processes, damage is found, and processes end."""

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kvbench.errors import CorruptDataError, TierUnavailableError, UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, Memory
from kvbench.measure.body import Context
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.peer.flight import FetchRequest
from kvbench.peer.model import PeerError
from kvbench_suites import peer_holder
from kvbench_suites.peer import (
    GET,
    IPERF3,
    LOOKUP,
    MOONCAKE_READ,
    NIXL_READ,
    PYTHON_MOONCAKE,
    REDIS_GET,
)
from kvbench_suites.peer_baselines import Iperf3, RedisGet
from kvbench_suites.peer_bodies import Get
from kvbench_suites.peer_holder import Order
from kvbench_suites.peer_lookups import Lookup
from kvbench_suites.peer_one_sided import MooncakeRead, NixlRead
from kvbench_suites.peer_processes import HolderProcess, running

ROOT = Path(__file__).parents[2]
BLOCK_BYTES = 64 * 1024
SMALL = Machine(memory=Memory(available_bytes=256 * 2**20))
SIZES = {"block_bytes": BLOCK_BYTES, "batch": 8}
OPERATIONS: dict[type[Any], Operation] = {
    Get: GET,
    Lookup: LOOKUP,
    Iperf3: IPERF3,
    RedisGet: REDIS_GET,
    NixlRead: NIXL_READ,
    MooncakeRead: MOONCAKE_READ,
}
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server")
needs_iperf3 = pytest.mark.skipif(shutil.which("iperf3") is None, reason="no iperf3")


def context_of(operation: Operation, llama: KVGeometry, scratch: Path, **params: Value) -> Context:
    return Context(
        params=dict(operation.case(params).params),
        geometry=llama,
        machine=SMALL,
        plan=Plan(data_bytes=32 * BLOCK_BYTES),
        seed=7,
        process=0,
        scratch=scratch,
    )


@pytest.fixture
def made(llama: KVGeometry, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    bodies: list[Any] = []

    def one(kind: type[Any], **params: Value) -> Any:
        body = kind()
        bodies.append(body)
        body.set_up(context_of(OPERATIONS[kind], llama, tmp_path, **params))
        return body

    before = children()
    yield one
    for body in bodies:
        body.tear_down()
    assert children() == before  # nobody outlives a case
    assert [each for each in tmp_path.iterdir() if each.name.startswith("peer-")] == []


def children() -> set[str]:
    """Processes that this one has started and that are still there."""
    threads = Path("/proc/self/task").iterdir()
    return {pid for each in threads for pid in (each / "children").read_text().split()}


def run(body: Any, operations: int) -> int:
    """Let a stream complete so many operations; how many it told of."""
    body.start()
    told = 0
    try:
        while told < operations:
            told += len(body.poll(0.01).end_ns)
    finally:
        body.stop()
    return told + len(body.poll(0).end_ns)


def is_gone(pid: int) -> bool:
    """Whether a process is there no more; one that nobody has waited for is gone as well."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


# ---------------------------------------------------------------- blocks of peers


@pytest.mark.parametrize("transport", ["tcp", "tcp+tls", "shm"])
def test_blocks_of_another_process_come_and_are_compared_whole(
    made: Callable[..., Any], transport: str
) -> None:
    body = made(Get, transport=transport, queue_depth=2, **SIZES)
    assert body.operation_bytes == 8 * BLOCK_BYTES
    assert run(body, 6) >= 6
    assert body.verify() == 32 * BLOCK_BYTES
    seen = body.observed()
    assert seen.path == f"{transport}, from dram"
    assert seen.evidence["reasons"] == {}


def test_two_holders_share_the_work_and_blocks_of_a_drive_are_said_to_be(
    made: Callable[..., Any],
) -> None:
    # 16 MiB: what is smaller is not shared out among holders
    body = made(Get, holders=2, tier="nvme", block_bytes=2**20, batch=16)
    run(body, 2)
    assert body.verify() > 0
    seen = body.observed()
    assert seen.path in {"tcp, from nvme", "tcp, from nvme, buffered"}
    assert len(seen.evidence["blocks_by_holder"]) == 2
    assert all(seen.evidence["blocks_by_holder"])


def test_holders_that_somebody_else_started_are_asked_too(
    made: Callable[..., Any], tmp_path: Path
) -> None:
    holder = HolderProcess(Order(block_bytes=BLOCK_BYTES, blocks=16, seed=99))
    try:
        ready = peer_holder.Said(ready=holder.ready)
        file = tmp_path / "holders"
        file.write_bytes(msgspec.json.encode(ready) + b"\n")
        body = made(Get, peers=str(file), **SIZES)
        run(body, 2)
        assert body.verify() == 16 * BLOCK_BYTES
        with pytest.raises(TierUnavailableError, match="1 holders run: ask for no more"):
            made(Get, peers=str(file), holders=2, **SIZES)
        file.write_text("nonsense\n")
        with pytest.raises(UsageError, match="is not what holders print"):
            running(file)
    finally:
        holder.close()


def test_a_block_that_no_holder_has_is_no_fast_success(made: Callable[..., Any]) -> None:
    body = made(Get, **SIZES)
    body._holders[0].does("evict", end=32)
    with pytest.raises(PeerError, match=r"did not come from a peer that has it: .*gone"):
        run(body, 1)


def test_a_holder_that_dies_ends_the_case(made: Callable[..., Any]) -> None:
    body = made(Get, **SIZES)
    body._holders[0].kill()
    with pytest.raises(PeerError, match="did not come from a peer"):
        run(body, 1)


def test_rows_that_hold_another_block_or_the_last_one_are_found(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FetchRequest.result
    body = made(Get, **SIZES)

    def swapped(request: FetchRequest, timeout_s: float | None = None) -> Any:
        found = honest(request, timeout_s)
        body._rows[0][0] = body._rows[0][-1]
        return found

    monkeypatch.setattr(FetchRequest, "result", swapped)
    monkeypatch.setattr("kvbench.peer.joined.Joined.result", swapped)
    with pytest.raises(CorruptDataError, match="what arrived is not block 0"):
        run(body, 1)


def test_a_bit_in_the_middle_of_a_row_is_found_after_the_clock_has_stopped(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = made(Get, **SIZES)
    run(body, 1)
    honest = Get.operate

    def damaged(self: Get, lane: int, n: int) -> None:
        honest(self, lane, n)
        self._rows[lane][3][BLOCK_BYTES // 2] ^= 1

    monkeypatch.setattr(Get, "operate", damaged)
    with pytest.raises(CorruptDataError, match="block 3 is not what its holder has"):
        body.verify()


def test_a_lookup_counts_keys_and_a_wrong_answer_is_found(made: Callable[..., Any]) -> None:
    body = made(Lookup, prefix=100, peers=4, entries=50)
    assert body.operation_bytes == 100 * 32
    run(body, 10)
    assert body.verify() == 8 * 100 * 32
    # 8 prefixes of which the peers have 25, 50, 75 and 100, and 50 of their own each
    assert body.observed().evidence == {"peers": 4, "entries": 8 * 250 + 4 * 50}
    body._lengths[1] += 1
    with pytest.raises(CorruptDataError, match="says 50 blocks, which is wrong"):
        body.verify()
    body._directory.leave(body._ids[-1])
    with pytest.raises(CorruptDataError, match="of a prefix that one peer has"):
        body.operate(0, 0)


# ---------------------------------------------------------------- what others do


@needs_redis
def test_values_of_redis_come_and_are_compared_whole(made: Callable[..., Any]) -> None:
    body = made(RedisGet, **SIZES)
    assert run(body, 6) >= 6
    assert body.verify() == 32 * BLOCK_BYTES


@needs_redis
def test_a_value_that_redis_has_lost_or_that_was_changed_is_found(
    made: Callable[..., Any],
) -> None:
    body = made(RedisGet, **SIZES)
    sock = body._connection
    wrong = np.zeros(BLOCK_BYTES, np.uint8).tobytes()
    key = peer_holder.key_of(7, 9)
    sock.sendall(b"*3\r\n$3\r\nSET\r\n$32\r\n%b\r\n$%d\r\n%b\r\n" % (key, BLOCK_BYTES, wrong))
    assert sock.recv(5) == b"+OK\r\n"
    body.operate(0, 0)
    with pytest.raises(CorruptDataError, match="what arrived is not block 9"):
        body.operate(0, 1)
    sock.sendall(b"*1\r\n$8\r\nFLUSHALL\r\n")
    assert sock.recv(5) == b"+OK\r\n"
    with pytest.raises(CorruptDataError, match="Redis answers"):
        body.operate(0, 0)


@needs_iperf3
def test_iperf3_runs_and_its_count_is_told_as_unchecked(made: Callable[..., Any]) -> None:
    body = made(Iperf3)
    assert body.step() > 0
    assert body.verify() == 0
    assert body.observed().evidence == {"checked": False}
    body._client.close()
    with pytest.raises((PeerError, ValueError)):
        body.step()


@pytest.mark.parametrize(
    ("operation", "word"),
    [(IPERF3, "apt install iperf3"), (REDIS_GET, "apt install redis-server")],
)
def test_a_program_that_is_not_installed_is_named_with_what_to_do(
    operation: Operation, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    reason = operation.unmet({}, Machine())
    assert reason is not None
    assert word in reason


def test_mooncake_may_live_in_an_environment_of_its_own(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON_MOONCAKE, raising=False)
    reason = MOONCAKE_READ.unmet({}, Machine())
    assert reason is None or PYTHON_MOONCAKE in reason
    # A stand-in for the package: memory of another process, read as the engine would.
    package = tmp_path / "mooncake"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "engine.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = made(MooncakeRead, **SIZES)
    assert run(body, 4) >= 4
    assert body.verify() == 32 * BLOCK_BYTES
    body._holder.bytes[BLOCK_BYTES // 2] ^= 1
    with pytest.raises(CorruptDataError, match="block 0 is not what its holder has"):
        body.verify()


STAND_IN = """
import ctypes, os
class TransferEngine:
    def initialize(self, host, metadata, protocol, device):
        return 0
    def register_memory(self, address, size):
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # let others read
        return 0
    def get_rpc_port(self):
        return os.getpid()
    def batch_transfer_sync_read(self, segment, here, there, sizes):
        class Span(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
        read = ctypes.CDLL(None, use_errno=True).process_vm_readv
        for to, at, size in zip(here, there, sizes):
            local, remote = Span(to, size), Span(at, size)
            pid = int(segment.split(":")[1])
            if read(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) != size:
                return -1
        return 0
"""


# In a process of its own: UCX may crash as one ends.
BY_NIXL = """
import os, sys
from pathlib import Path
from kvbench.geometry import load_geometry
from kvbench_suites.peer import NIXL_READ
from kvbench_suites.peer_one_sided import NixlRead
from tests.suites.test_peer_bodies import SIZES, context_of, run
body = NixlRead()
try:
    body.set_up(context_of(NIXL_READ, load_geometry("llama-3.1-8b"), Path(), **SIZES))
    run(body, 4)
    print(body.verify(), body.observed().path, flush=True)
finally:
    body.tear_down()
os._exit(0)
"""


def test_nixl_alone_reads_the_same_blocks() -> None:
    if NIXL_READ.unmet({}, Machine()) is not None:
        pytest.skip("NIXL is not installed")
    command = [sys.executable, "-c", BY_NIXL]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT
    )
    assert told.stdout == f"{32 * BLOCK_BYTES} NIXL READ (UCX)\n", told.stderr


# ---------------------------------------------------------------- processes


def test_a_holder_that_cannot_begin_says_why_and_is_gone() -> None:
    holder = HolderProcess(Order(block_bytes=BLOCK_BYTES, blocks=4, seed=1, tier="nvme"))
    with pytest.raises(TierUnavailableError, match="a holder on a drive needs a folder"):
        _ = holder.peer
    holder.close()
    assert is_gone(holder.pid)


def test_a_holder_dies_with_the_process_that_started_it_also_when_it_stands_still() -> None:
    # The process that starts it leaves at once, without a word to it.
    code = (
        "import os, sys\n"
        "from kvbench_suites.peer_holder import Order\n"
        "from kvbench_suites.peer_processes import HolderProcess\n"
        "holder = HolderProcess(Order(block_bytes=4096, blocks=4, seed=1))\n"
        "holder.peer; holder.freeze()\n"
        "print(holder.pid, flush=True); os._exit(9)\n"
    )
    command = [sys.executable, "-c", code]
    starter = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert starter.returncode == 9, starter.stderr
    pid = int(starter.stdout)
    waiting = os.pidfd_open(pid) if not is_gone(pid) else None
    if waiting is not None:
        readable, _, _ = select.select([waiting], [], [], 10)
        os.close(waiting)
        assert readable, "it lives on"
    assert is_gone(pid)


def test_too_little_memory_for_the_requests_is_refused(made: Callable[..., Any]) -> None:
    with pytest.raises(TierUnavailableError, match="take a smaller batch or block_bytes"):
        made(Get, block_bytes=2**20, batch=64, queue_depth=4)
