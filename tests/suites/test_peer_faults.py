"""Requests while a peer fails: what is counted, that a wrong block is found, that processes end."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import CorruptDataError, TooFewSamplesError, UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.body import Context
from kvbench.measure.suite import Plan, Value
from kvbench.peer.model import Reason
from kvbench_suites import peer_fault_bodies, peer_faults
from kvbench_suites.peer_fault_bodies import Fault, Phase
from kvbench_suites.peer_faults import FAULT, FAULTS
from kvbench_suites.peer_proxy import FLIP, HOLD, PASS, SLOW, Proxy

QUICK = {
    "block_bytes": 64 * 1024,
    "local": 2,
    "batch": 4,
    "deadline_ms": 100,
    "every_ms": 5,
    "healthy_ms": 60,
    "fault_ms": 300,
}
WAIT_S = 10.0


@pytest.fixture
def made(llama: KVGeometry) -> Iterator[Callable[..., Any]]:
    bodies: list[Fault] = []

    def one(fault: str, **params: Value) -> Fault:
        case = FAULT.case({"fault": fault, **QUICK, **params})
        context = Context(
            params=dict(case.params),
            geometry=llama,
            machine=Machine(),
            plan=Plan(),
            seed=7,
            process=0,
            scratch=None,
        )
        body = Fault()
        bodies.append(body)
        body.set_up(context)
        return body

    yield one
    for body in bodies:
        pids = [each.pid for each in body._holders]
        body.tear_down()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # nobody outlives it


def script(body: Fault) -> dict[str, Any]:
    """One script, to its end; what it says."""
    body.start()
    body.stop()
    told = body.poll(0)  # raises what a request raised
    assert len(told.end_ns) > 0
    assert told.size_bytes is not None
    assert told.size_bytes.min() > 0  # what is local is always usable
    assert body.verify() > 0
    seen = body.observed()
    assert seen.path == body._context.word("transport")
    evidence: dict[str, Any] = seen.evidence["faults"]
    assert evidence["wrong_blocks"] == 0
    assert evidence["scripts"] >= 1
    assert len(evidence["clean_s"]) == evidence["scripts"]
    assert len(evidence["breaker_open_s"]) <= evidence["scripts"]  # none that was cut off
    assert seen.cautions == ()
    return evidence


def lacks(evidence: dict[str, Any]) -> int:
    """Requests in the fault that were not whole."""
    return int(evidence["requests_in_fault"] - evidence["whole_in_fault"])


def test_a_killed_peer_costs_blocks_opens_its_breaker_and_is_replaced(
    made: Callable[..., Any],
) -> None:
    body = made("kill")
    before = body._holders[0].pid
    evidence = script(body)
    assert lacks(evidence) > 0
    assert len(evidence["breaker_open_s"]) == evidence["scripts"]
    assert Reason.UNREACHABLE.value in evidence["reasons"]
    assert body._holders[0].pid != before


@pytest.mark.parametrize("fault", ["freeze", "partition", "slow"])
def test_a_silent_peer_costs_about_one_deadline_and_then_nobody_waits_for_it(
    made: Callable[..., Any], fault: str
) -> None:
    evidence = script(made(fault))
    assert lacks(evidence) > 0
    assert evidence["breaker_open_s"]
    assert 0.05 < evidence["lost_max_s"] < 5.0  # of a deadline of 0.1
    assert Reason.LATE.value in evidence["reasons"]


def test_blocks_evicted_between_lookup_and_fetch_are_gone_and_open_no_breaker(
    made: Callable[..., Any],
) -> None:
    evidence = script(made("evict", deadline_ms=5000, transport="shm"))
    assert lacks(evidence) == evidence["requests_in_fault"] - evidence["scripts"] > 0
    assert evidence["reasons"] == {Reason.GONE.value: 4 * lacks(evidence)}
    assert evidence["breaker_open_s"] == []


def test_a_bit_that_turns_over_on_the_way_is_found_on_arrival(made: Callable[..., Any]) -> None:
    body = made("flip", batch=8)
    evidence = script(body)
    assert body._holders[0].does("counts")["flipped_bits"] > 0
    assert evidence["reasons"][Reason.CORRUPT.value] > 0


@pytest.mark.parametrize("fault", ["version", "seed"])
def test_a_peer_of_another_version_or_seed_gives_nothing_and_costs_no_deadline(
    made: Callable[..., Any], fault: str
) -> None:
    evidence = script(made(fault, deadline_ms=5000))
    assert lacks(evidence) == evidence["requests_in_fault"] - evidence["scripts"] > 0
    assert set(evidence["reasons"]) == {Reason.REFUSED.value}
    assert evidence["late"] == 0


def test_a_wrong_block_leaves_no_figure(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checksums are not looked at: as with a store that has none.
    monkeypatch.setattr("kvbench.peer.tcp.sums_of", lambda _blocks, _layout: _Right())
    body = made("flip", batch=8)
    body.start()
    body.stop()
    with pytest.raises(CorruptDataError, match=r"\d+ of \d+ blocks were wrong"):
        body.verify()


class _Right:
    """Checksums that are what was expected, whatever that is."""

    def __ne__(self, other: object) -> bool:
        return False


def test_a_block_that_did_not_come_is_not_taken_for_the_one_before(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = made("kill")
    body.operate(0, 0)
    honest = type(body._reading.store).get_into

    def idle(store: Any, source: Any, rows: Any, **options: Any) -> Any:
        request = honest(store, source, rows.copy(), **options)
        request.result()
        return request

    monkeypatch.setattr(type(body._reading.store), "get_into", idle)
    body.operate(0, 4)  # the same prefix: its rows were filled by the request before
    assert body._tally.wrong > 0


def in_fault(body: Fault) -> bool:
    return body._phase is not Phase.HEALTHY


def test_a_fault_that_has_begun_is_finished_and_no_other_begins(made: Callable[..., Any]) -> None:
    body = made("evict", deadline_ms=5000)
    body.start()
    while not body._tally.scripts:
        body.poll(0.001)
    while not in_fault(body):  # of the second
        body.poll(0.001)
    body.stop()
    idle = not in_fault(body)
    assert idle
    assert body._tally.scripts == 2
    assert len(body._tally.clean_s) == 2


def test_a_script_that_does_not_end_leaves_no_figure(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_fault_bodies, "STOP_S", 0.1)
    body = made("kill", healthy_ms=60_000)
    body.start()
    body.stop()
    with pytest.raises(TooFewSamplesError, match="the fault was not over"):
        body.verify()


def test_every_fault_is_in_the_suite_and_those_of_the_way_are_of_tcp_only(
    llama: KVGeometry,
) -> None:
    cases = peer_faults.SUITE.build(llama, Machine())
    assert {case.params["fault"] for case in cases} == set(FAULTS)
    for fault in peer_faults.ON_THE_WAY:
        with pytest.raises(UsageError, match="is done on the way"):
            FAULT.case({"fault": fault, "transport": "shm", "block_bytes": 4096})
    assert all(case.operation.unmet(case.params, Machine()) is None for case in cases)


# ---------------------------------------------------------------- the proxy


@pytest.fixture
def passed() -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """A proxy, an asker's end, and the holder's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = Proxy(f"127.0.0.1:{listening.getsockname()[1]}")
        host, _, port = proxy.endpoint.rpartition(":")
        with socket.create_connection((host, int(port))) as near, listening.accept()[0] as far:
            near.settimeout(WAIT_S)
            far.settimeout(WAIT_S)
            yield proxy, near, far
    proxy.close()


def receive(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += sock.recv(size - len(found))
    return found


def test_a_partition_keeps_bytes_back_and_loses_none(
    passed: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    proxy, near, far = passed
    proxy.mode = HOLD
    for one, two in ((near, far), (far, near)):
        one.sendall(b"abc")
        two.settimeout(0.05)
        with pytest.raises(TimeoutError):
            two.recv(1)
        two.settimeout(WAIT_S)
    proxy.mode = PASS
    assert receive(far, 3) == receive(near, 3) == b"abc"


def test_flipping_turns_over_bits_of_what_a_holder_says_in_bulk_alone(
    passed: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    proxy, near, far = passed
    proxy.mode = FLIP
    sent = os.urandom(2**20)
    sending = threading.Thread(target=far.sendall, args=(sent,))
    sending.start()
    found = receive(near, len(sent))
    sending.join()
    wrong = sum((a ^ b).bit_count() for a, b in zip(sent, found, strict=True))
    assert wrong == proxy.flipped > 0
    far.sendall(b"short")
    assert receive(near, 5) == b"short"
    near.sendall(sent[:65536])
    assert receive(far, 65536) == sent[:65536]


def test_a_slow_way_lets_little_through_and_is_fast_at_once_when_that_is_over(
    passed: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    proxy, near, far = passed
    proxy.mode = SLOW
    far.sendall(bytes(65536))
    first = near.recv(65536)
    assert 0 < len(first) <= 8192
    proxy.mode = PASS
    assert len(receive(near, 65536 - len(first))) == 65536 - len(first)
    with pytest.raises(ValueError, match="a proxy of mode 'lossy'"):
        proxy.mode = "lossy"
