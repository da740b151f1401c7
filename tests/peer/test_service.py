"""A peer whole, as an engine has it: others get what it puts, until it leaves or is killed."""

import json
import logging
import signal
import socket
import threading
import urllib.request
from pathlib import Path

import pytest
from msgspec import structs

from kvbench.errors import UsageError
from kvbench.peer import connect, membership
from kvbench.peer.certs import make_ca, make_certificate
from kvbench.peer.client import Onlooker, PeerClient
from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.config import load_config
from kvbench.peer.messages import Ask
from kvbench.peer.model import PeerError
from kvbench.peer.replication import Replication
from kvbench.peer.service import PeerService
from kvbench.peer.shares import tag_of
from kvbench.peer.status import decode, encode
from kvbench.peer.view import seen, troubles
from kvbench.store.block import Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.store import TieredStore
from tests.peer.eventful import eventually
from tests.peer.sidecar import PATIENCE_S, Sidecar, service, sidecar, toml, warm
from tests.store.blocks import (
    LAYOUT,
    NAMESPACE,
    OK,
    WAIT_S,
    empty_rows,
    get,
    keys_of,
    payload_of,
    payloads_of,
    put,
)

pytest.importorskip("zenoh")
KEYS = keys_of(12)


def reaches(one: PeerService, count: int = len(KEYS)) -> bool:
    """Whether it becomes known there that so many of KEYS can be had."""

    def known() -> bool:
        with one.store.lookup(KEYS) as lease:
            return len(lease) == count

    return eventually(known, PATIENCE_S)


def fetched(one: PeerService, deadline_s: float = WAIT_S) -> list[Status]:
    """Get KEYS; every block that is said to be there has to be the right one."""
    rows = empty_rows(len(KEYS))
    statuses = one.store.get_into(KEYS, rows, deadline_s=deadline_s).result(WAIT_S)
    for key, row, status in zip(KEYS, rows, statuses, strict=True):
        assert status is not Status.OK or (row == payload_of(key)).all()
    return statuses


def paths(one: PeerService) -> dict[str, int]:
    """Blocks by the path they came by."""
    found: dict[str, int] = {}
    for line in one.status().incoming.peers.values():
        for path, way in line.paths.items():
            found[path] = found.get(path, 0) + way.blocks
    return found


@pytest.mark.parametrize("how", ["shm", "tcp", "tcp+tls", "nixl (UCX)"])
def test_what_one_service_puts_another_gets(tmp_path: Path, how: str) -> None:
    if how == "nixl (UCX)":
        pytest.importorskip("nixl_cu12")
    more = ""
    if how == "tcp+tls":
        make_ca(tmp_path / "ca")
        make_certificate(tmp_path / "me", ca=tmp_path / "ca")
        more = "[tls]\nfolder = 'me'\n[fetch]\nkeep = 'never'\ndeadline_s = 20"
    transports = [how.replace("+", " ").split()[0]]
    with service(toml(tmp_path, "a", transports=transports, more=more)) as a:
        assert put(a.store.store, KEYS) == [OK] * len(KEYS)
        with service(toml(tmp_path, "b", join=a.join, transports=transports, more=more)) as b:
            assert reaches(b)
            with b.store.lookup(KEYS) as lease:
                assert set(lease.tiers) == {"peer"}
            assert fetched(b) == [OK] * len(KEYS)
            assert paths(b) == {how: len(KEYS)}
            size = len(KEYS) * LAYOUT.block_bytes  # counted once the other one has let go
            assert eventually(lambda: a.status().outgoing.sent_bytes == size, PATIENCE_S)
            assert a.status().outgoing.sent_blocks == len(KEYS)
            assert [each.name for each in a.status().peers] == ["b"]


def test_a_sidecar_serves_the_drive_that_it_finds_warm(tmp_path: Path) -> None:
    drive = warm(tmp_path / "drive", KEYS)
    with (
        sidecar(toml(tmp_path, "a", drive=drive)) as a,
        service(toml(tmp_path, "b", join=[a.join])) as b,
    ):
        assert reaches(b)
        assert fetched(b) == [OK] * len(KEYS)
        assert sum(paths(b).values()) == len(KEYS)


def test_a_killed_sidecar_costs_its_blocks_and_no_local_ones(tmp_path: Path) -> None:
    drive = warm(tmp_path / "drive", KEYS)
    own = keys_of(3, prefix=1)
    with sidecar(toml(tmp_path, "a", drive=drive)) as a:
        config = toml(tmp_path, "b", join=[a.join], more="[fetch]\nkeep = 'never'")
        with service(config) as b:
            assert put(b.store.store, own) == [OK] * 3
            assert reaches(b)
            assert fetched(b) == [OK] * len(KEYS)
            assert a.end(signal.SIGKILL) == -signal.SIGKILL
            assert OK not in fetched(b), "of one that is gone nothing comes"
            assert get(b.store.store, own) == [OK] * 3
            assert eventually(lambda: not b.status().peers, PATIENCE_S)
            assert eventually(lambda: not b.status().incoming.peers, PATIENCE_S), "it is let go of"
            assert fetched(b) == [Status.MISS] * len(KEYS)
            assert b.status().incoming.reasons["nobody"] >= len(KEYS)


def test_a_peer_that_drains_is_asked_no_more_and_serves_itself(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a")) as a:
        put(a.store.store, KEYS)
        with service(toml(tmp_path, "b", join=a.join)) as b, Onlooker(b.config.membership()) as _:
            assert reaches(b)
            with Onlooker(load_config(toml(tmp_path, "c", join=a.join)).membership()) as onlooker:
                onlooker.drain(onlooker.find("a", PATIENCE_S), PATIENCE_S)
            assert a.wait(PATIENCE_S)
            assert a.draining
            assert eventually(lambda: [p.draining for p in b.status().peers] == [True], PATIENCE_S)
            assert reaches(b, 0)
            assert fetched(b) == [Status.MISS] * len(KEYS)
            assert get(a.store.store, KEYS) == [OK] * len(KEYS)


def lend(one: PeerService) -> object:
    """A loan of KEYS, as a connection has it while it sends them."""
    parts = one._opened()
    ask = Ask(1, tag_of(NAMESPACE), one.me.epoch, KEYS, place=False, within_ms=60_000)
    return parts.holder.answer(ask)


def test_draining_waits_for_what_is_being_sent(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a")) as a:
        put(a.store.store, KEYS)
        served = lend(a)
        drained = threading.Event()

        def drain() -> None:
            a.drain(within_s=PATIENCE_S)
            drained.set()

        thread = threading.Thread(target=drain)
        thread.start()
        assert eventually(lambda: a.draining, PATIENCE_S)
        assert not drained.wait(0.3)
        served.end(used=True)  # type: ignore[attr-defined]
        assert drained.wait(WAIT_S)
        thread.join()


def test_draining_waits_no_longer_than_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with service(toml(tmp_path, "a", more="[serve]\ndrain_s = 0.2")) as a:
        put(a.store.store, KEYS)
        lend(a)
        a.close()
        assert f"{len(KEYS) * LAYOUT.block_bytes} bytes are still lent" in caplog.text
        a.close()  # once more is no error


def test_a_service_that_finds_nobody_serves_itself_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "ALONE_S", 0.1)
    with service(toml(tmp_path, "a", join=["127.0.0.1:1"])) as a:
        assert put(a.store.store, KEYS) == [OK] * len(KEYS)
        assert fetched(a) == [OK] * len(KEYS)
        assert eventually(lambda: "no peer has answered at" in caplog.text, PATIENCE_S)


def test_a_port_that_is_taken_is_one_line_and_leaves_nothing_open(tmp_path: Path) -> None:
    drive = warm(tmp_path / "drive", KEYS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = load_config(
            toml(tmp_path, "a", drive=drive, more=f"listen = ['127.0.0.1:{port}']")
        )
        threads = set(threading.enumerate())
        with pytest.raises(PeerError, match=f"cannot listen on tcp/127.0.0.1:{port}"):
            PeerService(config).start()
        assert eventually(lambda: _ours(threads) == [], PATIENCE_S)
        for table in ("[metrics]", "[fetch]\n[metrics]"):
            more = f"{table}\nlisten = '127.0.0.1:{port}'"
            with pytest.raises(UsageError, match="cannot serve metrics on"):
                PeerService(load_config(toml(tmp_path, "a", drive=drive, more=more))).start()
    with service(toml(tmp_path, "a", drive=drive)) as a:  # its lock is free
        assert get(a.store.store, KEYS) == [OK] * len(KEYS)


def _ours(before: set[threading.Thread]) -> list[str]:
    """Threads of this package that were not there before; Zenoh's own stay."""
    now = set(threading.enumerate()) - before
    return [each.name for each in now if each.name.startswith("kvbench")]


def test_closing_ends_every_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with service(toml(tmp_path, "a")) as a, service(toml(tmp_path, "b", join=a.join)) as b:
        put(a.store.store, KEYS)
        assert reaches(b)
        fetched(b)
        assert _ours(before)
    assert eventually(lambda: not _ours(before), PATIENCE_S), _ours(before)


def test_a_status_is_answered_to_who_asks_and_says_who_holds_what(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a")) as a, service(toml(tmp_path, "b", join=a.join)) as b:
        put(a.store.store, KEYS)
        assert reaches(b)
        fetched(b)
        with Onlooker(load_config(toml(tmp_path, "c", join=a.join)).membership()) as onlooker:
            peers = onlooker.peers(PATIENCE_S)
            assert eventually(lambda: len(onlooker.peers()) == 2, PATIENCE_S)
            peers = onlooker.peers()

            def known() -> bool:
                one, two = (onlooker.status(each, PATIENCE_S) for each in peers)
                return (
                    [each.entries for each in two.peers] == [len(KEYS)]
                    and two.peers[0].sequence == one.published
                    and two.incoming.arrived == len(KEYS)
                    and one.outgoing.sent_blocks == len(KEYS)
                    and one.tiers["dram"].blocks == len(KEYS)
                )

            assert eventually(known, PATIENCE_S)


def test_a_status_survives_the_wire_and_what_is_none_is_refused(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a")) as a:
        status = a.status()
        assert decode(encode(status)) == status
        for body in (b"", b"\xc0", encode(status)[:-1], b"\x81\xa2id\x01"):
            with pytest.raises(PeerError, match="its status cannot be read"):
                decode(body)


def test_who_asks_while_a_service_starts_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, said = Replication.start, list[str]()

    def asked_meanwhile(self: Replication) -> None:
        start(self)
        where = MembershipConfig(cluster="tests", join=self.membership.endpoints)
        with Onlooker(where) as onlooker:
            (one,) = onlooker.peers(PATIENCE_S)
            for ask in (onlooker.status, onlooker.drain):
                with pytest.raises(PeerError) as refused:
                    ask(one, PATIENCE_S)
                said.append(str(refused.value))

    monkeypatch.setattr(Replication, "start", asked_meanwhile)
    with service(toml(tmp_path, "a")) as a:
        assert said == [f"peer {a.me.id.hex()[:8]}: it is starting: ask again"] * 2
        assert not a.draining
        assert a.status().members["failed"] == 0
    assert "Traceback" not in caplog.text


def test_status_says_in_words_that_garbage_came(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a")) as a:
        status = a.status()
        assert not list(troubles(seen([a.me], [status])))
        spoilt = structs.replace(status, repairs=status.repairs | {"garbage": 3})
        (line,) = troubles(seen([a.me], [spoilt]))
        assert line.startswith("a: 3 messages in the name of other peers were garbage")


def test_metrics_beyond_loopback_are_said_to_be_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with service(toml(tmp_path, "a", more="insecure = true\n[metrics]\nlisten = '0.0.0.0:0'")):
        assert "insecure: anybody who reaches 0.0.0.0:0 can read the metrics" in caplog.text


def test_a_tenant_with_another_salt_finds_nothing(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a")) as a:
        put(a.store.store, KEYS)
        config = toml(tmp_path, "b", join=a.join)
        config.write_text(config.read_text().replace(NAMESPACE.hex(), "00" * 32))
        with service(config) as b:
            refused = eventually(lambda: b.status().members["refused"] == 1, PATIENCE_S)
            assert refused
            assert (b.status().peers, fetched(b)) == ([], [Status.MISS] * len(KEYS))


def test_only_blocks_of_the_tenants_of_a_share_are_told_and_served(tmp_path: Path) -> None:
    config = toml(tmp_path, "a")
    text = config.read_text().replace("[data]", "tenants = ['search']\n[data]")
    config.write_text(text)
    with service(config) as a:
        put(a.store.store, KEYS[:5], tenant="search")
        rows = payloads_of(KEYS[5:])
        a.store.put(KEYS[5:], rows, parent=KEYS[4], position=5, tenant="chat").result(WAIT_S)
        with service(toml(tmp_path, "b", join=a.join)) as b:
            assert reaches(b, 5)
            assert fetched(b)[:6] == [OK] * 5 + [Status.MISS]


def test_metrics_of_peer_and_store_are_scraped_from_one_port(tmp_path: Path) -> None:
    config = toml(tmp_path, "a", more="[metrics]\nlisten = '127.0.0.1:0'")
    with service(config) as a:
        put(a.store.store, KEYS)
        assert a.metrics is not None
        with urllib.request.urlopen(a.metrics, timeout=WAIT_S) as answer:
            text = answer.read().decode()
    assert 'kvbench_peer_info{cluster="tests",id=' in text
    assert f'kvbench_store_used_slots{{tier="dram"}} {float(len(KEYS))}' in text


def test_connect_starts_a_peer_from_its_file(tmp_path: Path) -> None:
    with connect(toml(tmp_path, "a")) as a:
        assert a.me.name == "a"
        assert json.loads(json.dumps(a.me.endpoints))["tcp"].startswith("127.0.0.1:")
        with pytest.raises(UsageError, match="started already"):
            a.start()


def test_a_store_that_was_opened_by_others_can_be_shared(tmp_path: Path) -> None:
    config = load_config(toml(tmp_path, "a"))
    with pytest.raises(UsageError, match="the store has"):
        PeerService(config, store=TieredStore([DramTier(Layout(4096), 4)]))
    own = TieredStore([DramTier(LAYOUT, 16)])
    put(own, KEYS)
    with PeerService(config, store=own) as a, service(toml(tmp_path, "b", join=a.join)) as b:
        assert reaches(b)
        assert fetched(b) == [OK] * len(KEYS)


def test_a_client_without_a_store_fetches_single_blocks(tmp_path: Path) -> None:
    absent = keys_of(1, prefix=9)
    with service(toml(tmp_path, "a")) as a:
        put(a.store.store, KEYS)
        told = eventually(lambda: a.status().entries == len(KEYS), PATIENCE_S)
        assert told
        client = PeerClient(load_config(toml(tmp_path, "c", join=a.join)))
        wanted = [KEYS[7], absent[0], KEYS[2]]
        rows = empty_rows(3)
        try:
            client.start(PATIENCE_S)
            found = client.get(wanted, list(rows), deadline_s=WAIT_S)
        finally:
            client.close()
        assert [got.status for got in found] == [OK, Status.MISS, OK]
        assert found[1].why == "nobody"
        assert (rows[0] == payload_of(KEYS[7])).all()
        assert (rows[2] == payload_of(KEYS[2])).all()


def test_a_client_fetches_many_blocks_in_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvbench.peer.client.PORTION", 5)
    with service(toml(tmp_path, "a")) as a:
        put(a.store.store, KEYS)
        told = eventually(lambda: a.status().entries == len(KEYS), PATIENCE_S)
        assert told
        rows = empty_rows(len(KEYS))
        with PeerClient(load_config(toml(tmp_path, "c", join=a.join))) as client:
            found = client.get(KEYS, list(rows), deadline_s=WAIT_S)
    assert [got.status for got in found] == [OK] * len(KEYS)
    assert (rows == payloads_of(KEYS)).all()


def test_a_client_says_that_nobody_is_there(tmp_path: Path) -> None:
    client = PeerClient(load_config(toml(tmp_path, "c", join=["127.0.0.1:1"])))
    with pytest.raises(PeerError, match=r"no peer has answered within 0\.3 s"):
        client.start(0.3)


def test_sigterm_leaves_and_the_others_see_it_at_once(tmp_path: Path) -> None:
    made = Sidecar(toml(tmp_path, "a"))
    try:
        with service(toml(tmp_path, "b", join=[made.join])) as b:
            assert eventually(lambda: len(b.status().peers) == 1, PATIENCE_S)
            assert made.end(signal.SIGTERM) == 0
            assert eventually(lambda: not b.status().peers, LEFT_S), "not by its lease"
    finally:
        made.close()
    assert "Traceback" not in made.log()


LEFT_S = 5.0  # half of the lease
logging.getLogger("kvbench").setLevel(logging.INFO)
