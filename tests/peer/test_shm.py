"""Blocks out of the memory of a process on this machine."""

import fcntl
import gc
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from kvbench.peer import shm
from kvbench.peer.model import Outcome, Peer, PeerError, Reason
from kvbench.peer.placed import PlacedChannel
from kvbench.peer.shm import Mapping, ShmTransport, host_digest
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums
from tests.peer.other_process import LONG_S, OtherProcess, check, peer_of, pull_of
from tests.store.blocks import LAYOUT, NAMESPACE, empty_rows, keys_of, payloads_of

KEYS = keys_of(8)
ABSENT = keys_of(2, 7)
LATE_S = 0.3
PRINT_DIGEST = "from kvbench.peer.shm import host_digest; print(host_digest())"


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProcess]:
    with OtherProcess("shm", keys=KEYS) as other:
        yield other


def connect(peer: Peer, layout: Layout = LAYOUT) -> PlacedChannel:
    return ShmTransport(peer_of(layout)).connect(peer, time.monotonic() + LONG_S)


def pulled(
    channel: PlacedChannel, peer: Peer, keys: Sequence[bytes], within_s: float = LONG_S
) -> tuple[list[Outcome], Bytes]:
    rows = empty_rows(len(keys))
    outcomes = channel.pull(pull_of(peer, keys, rows, within_s))
    check(keys, rows, outcomes, LAYOUT)
    return outcomes, rows


def reasons(outcomes: Sequence[Outcome]) -> set[Reason | None]:
    return {outcome.reason for outcome in outcomes}


def before_copying(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act when the places are known and nothing is copied yet."""

    def copy(sources: Sequence[Bytes], targets: Sequence[Bytes], layout: Layout) -> list[bytes]:
        act()
        return copy_with_sums(sources, targets, layout)

    monkeypatch.setattr(shm, "copy_with_sums", copy)


def handed_over(peer: Peer) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LONG_S)
        sock.connect(f"\0{peer.endpoints['shm']}")
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
    return fds[0]


def test_blocks_of_another_process_arrive_bit_for_bit(other: OtherProcess) -> None:
    channel = connect(other.peer)
    outcomes, rows = pulled(channel, other.peer, KEYS)
    assert outcomes == [Outcome(None, "dram")] * len(KEYS)
    assert (rows == payloads_of(KEYS)).all()
    assert channel.path == "shm"
    channel.close()


def test_a_block_that_is_not_there_is_gone_and_the_others_arrive(other: OtherProcess) -> None:
    channel = connect(other.peer)
    outcomes, rows = pulled(channel, other.peer, [KEYS[0], ABSENT[0], KEYS[1], ABSENT[1]])
    assert [outcome.reason for outcome in outcomes] == [None, Reason.GONE, None, Reason.GONE]
    assert (rows[[1, 3]] == 0xEE).all()
    assert not channel.broken
    channel.close()


def test_after_a_pull_nothing_is_lent_any_more(other: OtherProcess) -> None:
    channel = connect(other.peer)
    for _ in range(100):  # more than one connection may have loans
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
    channel.close()
    end_s = time.monotonic() + LONG_S
    while other.does("counts").lent_bytes:
        assert time.monotonic() < end_s


def test_blocks_on_a_drive_are_sent_by_the_same_channel(tmp_path: Path) -> None:
    keys = keys_of(24)
    with OtherProcess("shm", keys=keys, slots=8, folder=str(tmp_path / "drive")) as other:
        channel = connect(other.peer)
        outcomes, rows = pulled(channel, other.peer, keys)
        assert reasons(outcomes) == {None}
        assert (rows == payloads_of(keys)).all()
        assert "nvme" in {outcome.tier for outcome in outcomes}
        channel.close()


def test_the_memory_that_is_handed_over_cannot_be_written(other: OtherProcess) -> None:
    fd = handed_over(other.peer)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_gets_neither_memory_nor_an_answer(other: OtherProcess) -> None:
    name = f"\0{other.peer.endpoints['shm']}"
    before = other.does("dropped").get("refused", 0)
    child = os.fork()
    if child == 0:  # nothing but system calls: the parent has threads
        status = 9
        try:
            os.setgid(65534)
            os.setuid(65534)
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(LONG_S)
            sock.connect(name)
            said, fds, _, _ = socket.recv_fds(sock, 64, 4)
            status = 1 if said or fds else 0
        except ConnectionResetError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert other.does("dropped")["refused"] == before + 1


def test_a_listener_of_another_user_is_not_believed(
    other: OtherProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PeerError, match="user 12345 only") as caught:
        connect(other.peer)
    assert caught.value.reason is Reason.REFUSED


def test_memory_that_could_shrink_is_not_mapped() -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(PeerError, match="not sealed against shrinking"):
        Mapping(fd, Layout(4096))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_an_offset_beyond_the_memory_is_refused_before_it_is_read() -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8192)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    memory, rows = Mapping(fd, Layout(4096)), empty_rows(2, Layout(4096))
    pull = pull_of(peer_of(Layout(4096)), KEYS[:2], rows)
    assert [len(sums) for sums in memory.read([0, 4096], pull.targets, pull)] == [2]
    rows[:] = 0xEE
    for offset in (4097, 8192, 2**62):
        with pytest.raises(PeerError, match="beyond 8192 bytes"):
            list(memory.read([0, offset], pull.targets, pull))
    assert (rows == 0xEE).all()
    memory.close()


def test_a_flipped_bit_in_the_holders_memory_is_found() -> None:
    with OtherProcess("shm", keys=KEYS) as other:
        other.does("flip", KEYS[3])
        channel = connect(other.peer)
        outcomes, _ = pulled(channel, other.peer, KEYS)
        wrong = [i for i, outcome in enumerate(outcomes) if outcome.reason is Reason.CORRUPT]
        assert wrong == [3]
        assert reasons(outcomes) == {None, Reason.CORRUPT}
        assert not channel.broken
        channel.close()


def test_a_slot_that_got_another_block_after_the_loan_ended_is_corrupt_never_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OtherProcess("shm", keys=KEYS, slots=len(KEYS), loan_s=0.05) as other:
        channel = connect(other.peer)
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
        before_copying(monkeypatch, lambda: other.does("replace_all", KEYS))
        outcomes, _ = pulled(channel, other.peer, KEYS)
        assert reasons(outcomes) == {Reason.CORRUPT}
        monkeypatch.undo()
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {Reason.GONE}
        channel.close()


def test_a_loan_that_expired_unused_still_gives_right_blocks_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OtherProcess("shm", keys=KEYS, loan_s=0.05) as other:

        def wait_for_expiry() -> None:
            end_s = time.monotonic() + LONG_S
            while not other.does("counts").loans_expired:
                assert time.monotonic() < end_s

        before_copying(monkeypatch, wait_for_expiry)
        channel = connect(other.peer)
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
        channel.close()


def test_a_holder_that_freezes_while_its_blocks_are_copied_delays_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OtherProcess("shm", keys=KEYS) as other:
        channel = connect(other.peer)
        before_copying(monkeypatch, other.stop)
        begin_s = time.monotonic()
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
        assert time.monotonic() - begin_s < LONG_S / 2
        channel.close()


def test_a_holder_that_was_frozen_before_is_late_at_the_deadline() -> None:
    with OtherProcess("shm", keys=KEYS) as other:
        channel = connect(other.peer)
        other.stop()
        begin_s = time.monotonic()
        outcomes, rows = pulled(channel, other.peer, KEYS, LATE_S)
        assert LATE_S <= time.monotonic() - begin_s < LONG_S / 2
        assert reasons(outcomes) == {Reason.LATE}
        assert (rows == 0xEE).all()
        assert channel.broken
        with pytest.raises(PeerError) as caught:
            ShmTransport(peer_of(LAYOUT)).connect(other.peer, time.monotonic() + LATE_S)
        assert caught.value.reason is Reason.LATE
        channel.close()


def test_a_killed_holders_blocks_are_unreachable_and_memory_under_way_is_still_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OtherProcess("shm", keys=KEYS) as other:
        channel = connect(other.peer)
        before_copying(monkeypatch, other.kill)
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
        monkeypatch.undo()
        assert channel.broken
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {Reason.UNREACHABLE}
        with pytest.raises(PeerError) as caught:
            connect(other.peer)
        assert caught.value.reason is Reason.UNREACHABLE
        channel.close()


def test_a_namespace_that_is_not_shared_is_refused(other: OtherProcess) -> None:
    channel, rows = connect(other.peer), empty_rows(1)
    wrong = bytes(32)
    assert wrong != NAMESPACE
    outcomes = channel.pull(replace(pull_of(other.peer, KEYS[:1], rows), namespace=wrong))
    assert reasons(outcomes) == {Reason.REFUSED}
    assert (rows == 0xEE).all()
    channel.close()


def test_another_epoch_than_the_holders_is_restarted_and_nothing_is_asked(
    other: OtherProcess,
) -> None:
    channel, asks = connect(other.peer), other.does("counts").asks
    later = structs.replace(other.peer, epoch=other.peer.epoch + 1)
    assert reasons(pulled(channel, later, KEYS)[0]) == {Reason.RESTARTED}
    assert other.does("counts").asks == asks
    channel.close()


def test_a_peer_that_is_another_process_now_is_restarted(other: OtherProcess) -> None:
    with pytest.raises(PeerError) as caught:
        connect(structs.replace(other.peer, id=os.urandom(16)))
    assert caught.value.reason is Reason.RESTARTED


def test_blocks_of_another_shape_are_refused(other: OtherProcess) -> None:
    with pytest.raises(PeerError) as caught:
        connect(other.peer, Layout(LAYOUT.block_bytes, parts=1))
    assert caught.value.reason is Reason.REFUSED


def test_a_cancelled_pull_copies_no_more_and_the_channel_can_be_used_again(
    other: OtherProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm, "COPY_BYTES", LAYOUT.block_bytes)  # a block at a time
    copied: list[int] = []
    before_copying(monkeypatch, lambda: copied.append(1))
    channel, rows = connect(other.peer), empty_rows(len(KEYS))
    pull = replace(pull_of(other.peer, KEYS, rows), cancelled=lambda: len(copied) == 2)
    outcomes = channel.pull(pull)
    assert [o.reason for o in outcomes] == [None] * 2 + [Reason.CANCELLED] * (len(KEYS) - 2)
    assert (rows[2:] == 0xEE).all()
    assert not channel.broken
    assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
    channel.close()


def test_copying_ends_at_the_deadline(other: OtherProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "COPY_BYTES", LAYOUT.block_bytes)
    channel, rows = connect(other.peer), empty_rows(len(KEYS))
    pull = pull_of(other.peer, KEYS, rows, LATE_S)

    def wait() -> None:
        while time.monotonic() < pull.expires_s:
            pass

    before_copying(monkeypatch, wait)
    outcomes = channel.pull(pull)
    assert [o.reason for o in outcomes] == [None] + [Reason.LATE] * (len(KEYS) - 1)
    assert (rows[1:] == 0xEE).all()
    assert channel.broken
    channel.close()


def test_a_full_listener_says_busy() -> None:
    with OtherProcess("shm", keys=KEYS, limits={"connections": 1}) as other:
        channel = connect(other.peer)
        assert reasons(pulled(channel, other.peer, KEYS)[0]) == {None}
        with pytest.raises(PeerError) as caught:
            connect(other.peer)
        assert caught.value.reason is Reason.BUSY
        channel.close()


def test_only_peers_of_this_host_with_our_layout_are_reached(other: OtherProcess) -> None:
    me = peer_of(LAYOUT)
    assert ShmTransport(me).reaches(other.peer)
    for odd in (
        structs.replace(other.peer, host="another"),
        structs.replace(other.peer, endpoints={}),
        structs.replace(other.peer, block_bytes=2 * LAYOUT.block_bytes),
    ):
        assert not ShmTransport(me).reaches(odd)
    nowhere = structs.replace(other.peer, host="")
    assert not ShmTransport(structs.replace(me, host="")).reaches(nowhere)


def test_the_digest_of_a_host_tells_users_apart_and_names_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = host_digest()
    assert mine == host_digest()
    assert len(mine) == 32
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot.replace("-", "")[:8] not in mine
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert host_digest() != mine


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
def test_a_process_in_another_network_namespace_is_on_another_host() -> None:
    command = ["unshare", "--net", sys.executable, "-c", PRINT_DIGEST]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f"no network namespaces here: {said.stderr.strip()}")
    assert len(said.stdout.strip()) == 32
    assert said.stdout.strip() != host_digest()


def test_no_descriptor_is_left_open(other: OtherProcess) -> None:
    channel = connect(other.peer)
    pulled(channel, other.peer, KEYS)
    gc.collect()  # what other tests have left counts neither before nor after
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        more = connect(other.peer)
        more.close()
        with pytest.raises(PeerError):
            connect(structs.replace(other.peer, id=bytes(16)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    channel.close()
