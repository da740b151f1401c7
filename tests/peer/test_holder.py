"""What a holder lends, to whom, within which limits, and that it takes everything back."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from kvbench.errors import UsageError
from kvbench.peer.grant import Grant
from kvbench.peer.holder import Holder, HolderLimits
from kvbench.peer.messages import BUSY, GONE, HERE, Ask, Hello, Prove, Proven
from kvbench.peer.model import PROTOCOL_VERSION, PeerError, Reason
from kvbench.peer.shares import Share, holder_proof_of, proof_of, tag_of
from kvbench.store.block import Bytes, Layout, checksums
from kvbench.store.dram import DramTier
from kvbench.store.loans import Lent
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.peer.serving import peer_of
from tests.store.blocks import LAYOUT, NAMESPACE, drive, keys_of, payload_of, put, two_tiers

TAG = tag_of(NAMESPACE)
OTHER = b"o" * 32  # a namespace that is not shared


@pytest.fixture
def tier() -> DramTier:
    return DramTier(LAYOUT, 8)


@pytest.fixture
def store(tier: DramTier) -> Iterator[TieredStore]:
    with TieredStore([tier]) as each:
        yield each


def holder_of(store: TieredStore, share: Share | None = None, **limits: float) -> Holder:
    return Holder(
        store,
        [share or Share(NAMESPACE)],
        peer_of(store),
        HolderLimits(**limits),  # type: ignore[arg-type]
    )


def ask_of(holder: Holder, keys: list[bytes], *, place: bool = False, within_ms: int = 5000) -> Ask:
    return Ask(1, TAG, holder.me.epoch, keys, place, within_ms)


def test_blocks_in_memory_are_lent_where_they_lie(store: TieredStore, tier: DramTier) -> None:
    keys = keys_of(3)
    put(store, keys)
    holder = holder_of(store)
    served = holder.answer(ask_of(holder, [keys[2], *keys_of(1, prefix=5), keys[0]]))
    assert served.answer.states == bytes((HERE, GONE, HERE))
    assert served.answer.tiers == ["dram", "dram"]
    assert served.answer.sums == [checksums(payload_of(keys[i]), LAYOUT) for i in (2, 0)]
    for block, key in zip(served.blocks, (keys[2], keys[0]), strict=True):
        assert (block == payload_of(key)).all()
        assert any(np.shares_memory(block, tier.view(slot)) for slot in range(8))
    served.end(used=True)


def test_what_is_lent_is_not_evicted_and_is_taken_back(store: TieredStore) -> None:
    keys, later = keys_of(8), keys_of(8, prefix=1)
    put(store, keys)
    holder = holder_of(store)
    served = holder.answer(ask_of(holder, keys))
    assert holder.counts().lent_bytes == 8 * LAYOUT.block_bytes
    put(store, later)
    assert all((b == payload_of(key)).all() for b, key in zip(served.blocks, keys, strict=True))
    assert len(store.lookup(keys)) == 8
    served.end(used=False)
    served.end(used=True)  # once more is no error, and counts nothing
    assert holder.counts().lent_bytes == 0
    assert holder.counts().sent_blocks == 0
    for lease in (store.lookup(keys), store.lookup(later)):
        lease.release()


def test_a_block_that_was_sent_is_as_young_as_one_that_was_read() -> None:
    with TieredStore([DramTier(LAYOUT, 4)]) as store:
        prefixes = [keys_of(1, prefix=number) for number in range(5)]
        for keys in prefixes[:4]:
            put(store, keys)
        holder = holder_of(store)
        holder.answer(ask_of(holder, prefixes[0])).end(used=True)
        put(store, prefixes[4])  # the oldest goes
        with store.lookup(prefixes[0]) as kept, store.lookup(prefixes[1]) as gone:
            assert (len(kept), len(gone)) == (1, 0)


def test_lending_changes_nothing_in_the_store(store: TieredStore) -> None:
    keys = keys_of(4)
    put(store, keys)
    before = store.events()
    holder = holder_of(store)
    for used in (True, False):
        holder.answer(ask_of(holder, keys)).end(used=used)
    assert store.events() == before
    assert all(
        (block == payload_of(key)).all()
        for key, block in zip(keys, views(store, keys), strict=True)
    )


def views(store: TieredStore, keys: list[bytes]) -> list[Bytes]:
    loan = store.lend(keys)
    loan.release()
    return [lent.view for lent in loan.blocks if lent is not None and lent.view is not None]


# Limits.


def test_what_is_beyond_one_asks_limit_is_busy(store: TieredStore) -> None:
    keys = keys_of(4)
    put(store, keys)
    holder = holder_of(store, ask_bytes=2 * LAYOUT.block_bytes + 1)
    served = holder.answer(ask_of(holder, keys))
    assert served.answer.states == bytes((HERE, HERE, BUSY, BUSY))
    assert len(served.blocks) == 2
    served.end(used=True)
    assert holder.counts().busy_blocks == 2


def test_what_all_together_may_have_is_bounded(store: TieredStore) -> None:
    keys = keys_of(4)
    put(store, keys)
    holder = holder_of(store, lent_bytes=3 * LAYOUT.block_bytes)
    first = holder.answer(ask_of(holder, keys[:2]))
    second = holder.answer(ask_of(holder, keys[2:]))
    assert second.answer.states == bytes((HERE, BUSY))
    third = holder.answer(ask_of(holder, keys[2:]))
    assert third.answer.states == bytes((BUSY, BUSY))
    first.end(used=True)
    fourth = holder.answer(ask_of(holder, keys[2:]))
    assert fourth.answer.states == bytes((HERE, HERE))
    for served in (second, third, fourth):
        served.end(used=True)
    assert holder.counts().lent_bytes == 0


def test_a_store_with_too_many_leases_is_busy_and_not_without_the_block(tier: DramTier) -> None:
    with TieredStore([tier], Options(most_leases=1)) as store:
        keys = keys_of(1)
        put(store, keys)
        holder = holder_of(store)
        with store.lookup(keys):
            served = holder.answer(ask_of(holder, keys))
            assert served.answer.states == bytes((BUSY,))
            served.end(used=False)


def test_limits_are_positive() -> None:
    with pytest.raises(UsageError, match="lent_bytes"):
        HolderLimits(lent_bytes=0)
    with pytest.raises(UsageError, match="loan_s"):
        HolderLimits(loan_s=float("nan"))


# Blocks that the host cannot address.


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[TieredStore]:
    """Six blocks that are on a drive only, found there when the store was opened."""
    with two_tiers(tmp_path / "drive", options=Options(demotion="always")) as store:
        put(store, keys_of(6))
        store.flush().result()
    with two_tiers(tmp_path / "drive", options=Options(promotion="never")) as store:
        yield store


def test_blocks_on_a_drive_are_staged_and_have_their_checksums(cold: TieredStore) -> None:
    keys = keys_of(6)
    holder = holder_of(cold)
    served = holder.answer(ask_of(holder, [*keys, *keys_of(1, prefix=5)]))
    assert served.answer.states == bytes((HERE,) * 6 + (GONE,))
    assert served.answer.tiers == ["nvme"] * 6
    assert served.answer.sums == [checksums(payload_of(key), LAYOUT) for key in keys]
    assert all(
        (block == payload_of(key)).all() for key, block in zip(keys, served.blocks, strict=True)
    )
    assert not served.files
    assert holder.counts().staged_bytes == 6 * LAYOUT.block_bytes
    served.end(used=True)
    assert holder.counts().staged_bytes == 0
    assert holder.counts().staged_blocks == 6


def test_staging_is_bounded_and_used_again(cold: TieredStore) -> None:
    keys = keys_of(6)
    holder = holder_of(cold, staging_bytes=4 * LAYOUT.block_bytes)
    for _ in range(3):
        served = holder.answer(ask_of(holder, keys))
        assert served.answer.states == bytes((HERE,) * 4 + (BUSY,) * 2)
        other = holder.answer(ask_of(holder, keys[4:]))
        assert other.answer.states == bytes((BUSY, BUSY))
        assert all((b == payload_of(k)).all() for k, b in zip(keys[:4], served.blocks, strict=True))
        served.end(used=True)
        other.end(used=False)


def test_a_damaged_block_on_a_drive_is_gone_and_the_others_are_here(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    with two_tiers(folder, options=Options(demotion="always")) as store:
        put(store, keys_of(3))
        store.flush().result()
    wanted = payload_of(keys_of(3)[1])[:4096].tobytes()
    (data,) = [path for path in folder.rglob("*") if path.is_file() and wanted in path.read_bytes()]
    whole = data.read_bytes()
    with data.open("r+b") as file:
        file.seek(whole.index(wanted) + 100)
        file.write(b"\0" * 16)
    with TieredStore([drive(folder, 32)]) as store:
        holder = holder_of(store)
        served = holder.answer(ask_of(holder, keys_of(3)))
        assert served.answer.states == bytes((HERE, GONE, HERE))
        assert (served.blocks[1] == payload_of(keys_of(3)[2])).all()
        served.end(used=True)


# Places.


def in_memory(tier: DramTier) -> Callable[[Lent], int | None]:
    def place(lent: Lent) -> int | None:
        return tier.slot_offset_bytes(lent.slot) if lent.tier == tier.name else None

    return place


def test_places_say_where_the_blocks_lie(store: TieredStore, tier: DramTier) -> None:
    keys = keys_of(3)
    put(store, keys)
    holder = holder_of(store)
    served = holder.answer(ask_of(holder, keys, place=True), in_memory(tier))
    assert served.answer.states == bytes((HERE,) * 3)
    for key, place in zip(keys, served.answer.places, strict=True):
        assert os.pread(tier.fd, LAYOUT.block_bytes, place.offset) == payload_of(key).tobytes()
    served.end(used=True)


def test_a_peer_that_asks_for_places_moves_no_block_of_the_holder(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive", options=Options(demotion="always")) as store:
        put(store, keys_of(3))
        store.flush().result()
    tier = DramTier(LAYOUT, 8)
    with TieredStore([tier, drive(tmp_path / "drive", 32)]) as store:
        holder = holder_of(store)
        served = holder.answer(ask_of(holder, keys_of(3), place=True), in_memory(tier))
        assert served.answer.states == bytes((BUSY,) * 3)
        served.end(used=False)
        assert store.stats().tiers["dram"].used == 0


def test_what_the_transport_does_not_reach_is_busy(store: TieredStore) -> None:
    put(store, keys_of(1))
    holder = holder_of(store)
    served = holder.answer(ask_of(holder, keys_of(1), place=True), lambda _lent: None)
    assert served.answer.states == bytes((BUSY,))
    assert served.answer.places == []
    served.end(used=False)
    assert holder.counts().lent_bytes == 0


def test_neighbours_in_a_file_are_sent_together(store: TieredStore, tier: DramTier) -> None:
    keys = keys_of(8)
    put(store, keys)
    holder = Holder(store, [Share(NAMESPACE)], peer_of(store), files=[tier])
    served = holder.answer(ask_of(holder, keys))
    whole = b"".join(os.pread(part.fd, part.size, part.offset) for part in served.files)
    assert whole == b"".join(payload_of(key).tobytes() for key in keys)
    assert len(served.files) == 1
    served.end(used=True)
    some = holder.answer(ask_of(holder, [keys[4], keys[0], keys[1]]))
    whole = b"".join(os.pread(part.fd, part.size, part.offset) for part in some.files)
    assert whole == b"".join(payload_of(keys[i]).tobytes() for i in (4, 0, 1))
    some.end(used=True)


# One connection.


def grant_of(holder: Holder) -> Grant:
    grant = Grant(holder, "tcp")
    grant.welcome(
        Hello(PROTOCOL_VERSION, b"a" * 16, LAYOUT.block_bytes, LAYOUT.parts, b"n" * 32, "tcp")
    )
    return grant


def test_a_proof_is_good_for_its_namespace_and_its_connection_only(store: TieredStore) -> None:
    holder = holder_of(store)
    grant, other = grant_of(holder), grant_of(holder)
    good = proof_of(NAMESPACE, grant.nonce, b"n" * 32)
    assert grant.proves(Prove(TAG, good))
    assert not other.proves(Prove(TAG, good))
    assert "wrong proof" in other.why
    assert not grant.proves(Prove(TAG, proof_of(OTHER, grant.nonce, b"n" * 32)))
    assert not grant.proves(Prove(tag_of(OTHER), proof_of(OTHER, grant.nonce, b"n" * 32)))
    assert "not shared" in grant.why
    counts = holder.counts()
    assert (counts.wrong_proof, counts.unknown_namespace) == (2, 1)


def test_the_holders_proof_is_of_its_connection_its_id_and_its_own_label(
    store: TieredStore,
) -> None:
    holder = holder_of(store)
    grant, other = grant_of(holder), grant_of(holder)
    good = proof_of(NAMESPACE, grant.nonce, b"n" * 32)
    said = grant.proven(Prove(TAG, good))
    me = holder.me.id
    assert said == Proven(TAG, holder_proof_of(NAMESPACE, grant.nonce, b"n" * 32, me))
    others = {
        good,
        other.proven(Prove(TAG, good)).proof,
        holder_proof_of(NAMESPACE, grant.nonce, b"m" * 32, me),
        holder_proof_of(NAMESPACE, grant.nonce, b"n" * 32, b"i" * 16),
        holder_proof_of(OTHER, grant.nonce, b"n" * 32, me),
    }
    assert len(others) == 5
    assert said.proof not in others
    assert not grant.proves(Prove(TAG, said.proof))


def test_who_has_proven_one_namespace_gets_no_block_of_another(store: TieredStore) -> None:
    of_a, of_b = keys_of(1), keys_of(1, prefix=1)
    put(store, of_a, tenant="a")
    put(store, of_b, tenant="b")
    shares = [Share(NAMESPACE, frozenset({"a"})), Share(OTHER, frozenset({"b"}))]
    holder = Holder(store, shares, peer_of(store))
    for tag, states in ((TAG, (HERE, GONE)), (tag_of(OTHER), (GONE, HERE))):
        ask = structs.replace(ask_of(holder, of_a + of_b), tag=tag)
        served = holder.answer(ask)
        assert served.answer.states == bytes(states)
        served.end(used=False)


def test_several_namespaces_have_tenants_of_their_own(store: TieredStore) -> None:
    a, b, all_of_them = frozenset({"a", "x"}), frozenset({"b", "x"}), None
    with pytest.raises(UsageError, match=r"share\[0\] and share\[1\] both have tenant 'x'"):
        Holder(store, [Share(NAMESPACE, a), Share(OTHER, b)], peer_of(store))
    for first, second, at in ((a, all_of_them, 1), (all_of_them, b, 0), (None, None, 0)):
        with pytest.raises(UsageError, match=rf"share\[{at}\] is for all tenants"):
            Holder(store, [Share(NAMESPACE, first), Share(OTHER, second)], peer_of(store))


def test_the_tag_and_the_proof_do_not_give_the_digest_away() -> None:
    assert tag_of(NAMESPACE) not in NAMESPACE
    assert len({tag_of(NAMESPACE), tag_of(OTHER)}) == 2
    assert NAMESPACE.hex() not in repr(Share(NAMESPACE))


def test_another_epoch_is_told_that_the_store_restarted(store: TieredStore) -> None:
    holder = holder_of(store)
    ask = structs.replace(ask_of(holder, keys_of(1)), epoch=holder.me.epoch + 1)
    with pytest.raises(PeerError) as caught:
        grant_of(holder).answer(ask)
    assert caught.value.reason is Reason.RESTARTED
    assert holder.counts().other_epoch == 1


def test_a_loan_ends_when_it_is_released_or_over_or_its_connection_is(
    store: TieredStore, tier: DramTier
) -> None:
    keys = keys_of(2)
    put(store, keys)
    holder = holder_of(store, loan_s=0.05)
    grant = grant_of(holder)
    first = grant.answer(ask_of(holder, keys, place=True), in_memory(tier))
    assert first.answer.loan > 0
    assert 0 < first.answer.expires_ms <= 50
    grant.release(first.answer.loan)
    grant.release(first.answer.loan)
    grant.release(999)
    assert holder.counts().lent_bytes == 0
    assert holder.counts().sent_blocks == 2
    second = grant.answer(ask_of(holder, keys, place=True), in_memory(tier))
    while time.monotonic() < second.expires_s:
        grant.expire()
        assert holder.counts().lent_bytes > 0 or time.monotonic() >= second.expires_s
    grant.expire()
    assert holder.counts().lent_bytes == 0
    assert holder.counts().loans_expired == 1
    grant.answer(ask_of(holder, keys, place=True), in_memory(tier))
    grant.close()
    assert holder.counts().lent_bytes == 0


def test_a_connection_has_so_many_loans_and_no_more(store: TieredStore, tier: DramTier) -> None:
    keys = keys_of(1)
    put(store, keys)
    holder = holder_of(store, loans=2)
    grant = grant_of(holder)
    for state in (HERE, HERE, BUSY):
        served = grant.answer(ask_of(holder, keys, place=True), in_memory(tier))
        assert served.answer.states == bytes((state,))
    assert served.answer.loan == 0
    grant.close()


def test_an_answer_that_lends_nothing_has_no_loan(store: TieredStore) -> None:
    holder = holder_of(store)
    served = grant_of(holder).answer(ask_of(holder, keys_of(2)))
    assert served.answer.loan == 0
    assert served.answer.states == bytes((GONE, GONE))


def test_a_loan_of_a_payload_lasts_no_longer_than_the_asker_waits(store: TieredStore) -> None:
    put(store, keys_of(1))
    holder = holder_of(store)
    served = holder.answer(ask_of(holder, keys_of(1), within_ms=200))
    assert served.expires_s <= time.monotonic() + 0.2
    served.end(used=True)


def test_a_closed_store_has_nothing_any_more() -> None:
    store = TieredStore([DramTier(LAYOUT, 2)])
    holder = holder_of(store)
    store.close()
    with pytest.raises(PeerError, match="closed") as caught:
        holder.answer(ask_of(holder, keys_of(1)))
    assert caught.value.reason is Reason.GONE


# What cannot be.


def test_a_holder_is_for_one_layout_and_each_namespace_once(store: TieredStore) -> None:
    other = peer_of(store, block_bytes=2 * LAYOUT.block_bytes)
    with pytest.raises(UsageError, match="the store has"):
        Holder(store, [Share(NAMESPACE)], other)
    twice = [Share(NAMESPACE, frozenset("a")), Share(NAMESPACE, frozenset("b"))]
    with pytest.raises(UsageError, match="two shares"):
        Holder(store, twice, peer_of(store))
    with pytest.raises(UsageError, match="a digest of 3 bytes"):
        Share(b"abc")
    assert store.layout == Layout(16_384, 4)
