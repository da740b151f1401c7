"""The directory of hints against a slow model; deltas that are lost, late, doubled and wrong."""

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvbench.errors import UsageError
from kvbench.peer.directory import (
    HINT_MASK,
    MOST_HOLDERS,
    PIECE,
    Directory,
    Effect,
    Limits,
    Summary,
    hint,
    pack,
)
from kvbench.peer.model import PeerError, PeerId
from tests.peer.eventful import key, keys, peer


def filled(lengths: dict[int, int]) -> Directory:
    """Each peer holds the first so many of key(0), key(1), ..."""
    directory = Directory()
    for number, length in lengths.items():
        directory.join(peer(number))
        directory.snapshot(peer(number).id, 1, 0, pack(range(length)))
    return directory


def tell(directory: Directory, number: int, sequence: int, added: range) -> Effect:
    return directory.delta(peer(number).id, 1, sequence, pack(added), b"")


def test_a_lookup_names_who_has_how_much_of_a_prefix_longest_first() -> None:
    directory = filled({1: 3, 2: 10, 3: 0, 4: 7})
    assert directory.holders(keys(range(8))) == [
        (peer(2).id, 8),
        (peer(4).id, 7),
        (peer(1).id, 3),
    ]
    assert directory.holders(keys([50, 0, 1])) == []
    assert directory.holders([]) == []


@given(
    lengths=st.dictionaries(st.integers(0, 40), st.integers(0, 60), max_size=20),
    asked=st.integers(1, 60),
    most=st.integers(1, 20),
    skipped=st.sets(st.integers(0, 40)),
)
@settings(deadline=None)
def test_holders_are_those_of_a_scan_of_every_key_of_every_peer(
    lengths: dict[int, int], asked: int, most: int, skipped: set[int]
) -> None:
    found = filled(lengths).holders(
        keys(range(asked)), skip={peer(n).id for n in skipped}, most=most
    )
    slow = sorted(
        (min(length, asked) for n, length in lengths.items() if length and n not in skipped),
        reverse=True,
    )
    assert [length for _, length in found] == slow[:most]
    assert len({peer_id for peer_id, _ in found}) == len(found)
    for peer_id, length in found:
        assert length == min(lengths[int.from_bytes(peer_id, "big")], asked)


def test_of_many_that_hold_the_same_not_everybody_asks_the_same() -> None:
    first = {filled(dict.fromkeys(range(64), 5)).holders(keys(range(5)))[0] for _ in range(20)}
    assert len(first) > 1
    assert len(filled(dict.fromkeys(range(64), 5)).holders(keys(range(5)))) == MOST_HOLDERS


def test_who_drains_or_left_is_not_named_and_who_is_there_still_is() -> None:
    directory = filled({1: 5, 2: 5, 3: 5})
    assert not directory.join(peer(1, draining=True))
    directory.leave(peer(2).id)
    assert directory.holders(keys(range(5))) == [(peer(3).id, 5)]
    assert [each.name for each in directory.peers()] == ["peer-1", "peer-3"]
    assert directory.peer(peer(2).id) is None


def test_who_comes_back_has_nothing_until_a_snapshot_tells() -> None:
    directory = filled({1: 5})
    directory.leave(peer(1).id)
    assert directory.join(peer(1))
    assert directory.holders(keys(range(5))) == []
    assert tell(directory, 1, 1, range(5)) is Effect.GAP
    assert directory.snapshot(peer(1).id, 1, 8, pack(range(2))) is Effect.APPLIED
    assert directory.holders(keys(range(5))) == [(peer(1).id, 2)]


def test_another_epoch_of_a_peer_voids_what_was_known_of_it() -> None:
    directory = filled({1: 5})
    assert directory.join(peer(1, epoch=2))
    assert directory.holders(keys(range(5))) == []
    assert directory.snapshot(peer(1).id, 1, 9, pack(range(5))) is Effect.STALE
    assert directory.delta(peer(1).id, 1, 1, pack(range(5)), b"") is Effect.STALE
    assert directory.holders(keys(range(5))) == []


def test_a_delta_that_is_missing_is_noticed_and_changes_nothing() -> None:
    directory = filled({1: 0})
    assert tell(directory, 1, 1, range(3)) is Effect.APPLIED
    assert tell(directory, 1, 3, range(6)) is Effect.GAP
    assert directory.holders(keys(range(6))) == [(peer(1).id, 3)]
    assert tell(directory, 1, 1, range(6)) is Effect.STALE
    assert tell(directory, 1, 2, range(6)) is Effect.APPLIED
    assert directory.holders(keys(range(6))) == [(peer(1).id, 6)]


def test_a_snapshot_older_than_what_is_known_is_left_alone() -> None:
    directory = filled({1: 0})
    tell(directory, 1, 1, range(3))
    assert directory.snapshot(peer(1).id, 1, 0, b"") is Effect.STALE
    assert directory.holders(keys(range(3))) == [(peer(1).id, 3)]


def test_lookups_use_what_was_known_until_a_snapshot_is_whole() -> None:
    directory = filled({1: 4})
    filling = directory.fill(peer(1).id, 1, 5)
    filling.add(pack(range(2)))
    assert directory.holders(keys(range(9))) == [(peer(1).id, 4)]
    filling.add(pack(range(2, 9)))
    assert filling.commit() is Effect.APPLIED
    assert directory.holders(keys(range(9))) == [(peer(1).id, 9)]


def test_a_snapshot_that_breaks_off_or_whose_peer_leaves_is_nowhere_to_be_found() -> None:
    directory = filled({1: 4, 2: 0})
    broken = directory.fill(peer(1).id, 1, 5)
    broken.add(pack(range(9)))
    broken.drop()
    orphan = directory.fill(peer(2).id, 1, 5)
    orphan.add(pack(range(9)))
    directory.leave(peer(2).id)
    assert orphan.commit() is Effect.STALE
    directory.tidy()
    assert directory.holders(keys(range(9))) == [(peer(1).id, 4)]
    assert not directory._filling
    assert set(directory._masks) == set(range(4))


@pytest.mark.parametrize("size", [1, 7, 9, 8 * PIECE + 3])
def test_hints_that_are_none_change_nothing(size: int) -> None:
    directory = filled({1: 3})
    before = directory.summary(peer(1).id)
    with pytest.raises(PeerError, match="a hint has 8 bytes"):
        directory.delta(peer(1).id, 1, 1, bytes(size), b"")
    with pytest.raises(PeerError, match="a hint has 8 bytes"):
        directory.delta(peer(1).id, 1, 1, b"", bytes(size))
    with pytest.raises(PeerError, match="a hint has 8 bytes"):
        directory.snapshot(peer(1).id, 1, 1, bytes(size))
    assert directory.summary(peer(1).id) == before
    assert directory.holders(keys(range(3))) == [(peer(1).id, 3)]


def test_what_is_said_of_strangers_is_left_alone() -> None:
    directory = filled({1: 3})
    assert directory.delta(peer(9).id, 1, 1, pack([1]), b"") is Effect.STALE
    assert directory.snapshot(peer(9).id, 1, 1, pack([1])) is Effect.STALE
    assert directory.summary(peer(9).id) is None
    directory.leave(peer(9).id)
    assert [holding.entries for holding in directory.holdings()] == [3]


def test_entries_beyond_the_limits_are_left_out_and_said_so() -> None:
    directory = Directory(Limits(entries_a_peer=10, entries=15))
    for number in (1, 2):
        directory.join(peer(number))
        directory.snapshot(peer(number).id, 1, 0, pack(range(12)))
    one, two = directory.holdings()
    assert (one.entries, one.left_out, two.entries, two.left_out) == (10, 2, 5, 7)
    assert directory.summary(peer(1).id) is None  # not to be compared with all that it has
    assert [length for _, length in directory.holders(keys(range(12)))] == [10, 5]
    assert not directory.fits(peer(2).id, 6)
    directory.leave(peer(1).id)
    directory.tidy()
    assert directory.fits(peer(2).id, 10)
    assert not directory.fits(peer(2).id, 11)


def test_entries_of_those_who_left_give_way_to_new_ones() -> None:
    directory = Directory(Limits(entries=1000))
    for number in range(20):
        directory.join(peer(number))
        directory.snapshot(peer(number).id, 1, 0, pack(range(1000)))
        assert directory.holdings()[0].entries == 1000
        directory.leave(peer(number).id)


def test_more_peers_than_the_limit_are_refused_and_the_others_stay() -> None:
    directory = Directory(Limits(peers=2))
    directory.join(peer(1))
    directory.join(peer(2))
    with pytest.raises(PeerError, match="peer-3 is one more than the 2"):
        directory.join(peer(3))
    assert not directory.join(peer(2, draining=True))
    assert len(directory.peers()) == 2
    with pytest.raises(UsageError, match="limits of the directory are positive"):
        Directory(Limits(peers=0))


def test_a_key_is_known_by_60_bits_of_its_beginning_and_no_more() -> None:
    assert hint(b"\xff" * 32) == HINT_MASK
    assert hint(key(5)[:8] + b"x" * 24) == hint(key(5)) == 5
    directory = filled({1: 0})
    directory.snapshot(peer(1).id, 1, 0, b"\xff" * 8)
    assert directory.holders([b"\xff" * 32]) == [(peer(1).id, 1)]


def test_a_lookup_never_waits_for_the_removal_of_a_peer() -> None:
    directory = filled({1: 3})
    directory.join(peer(2))
    directory.snapshot(peer(2).id, 1, 0, pack(range(200_000)))
    start_s = time.perf_counter()
    directory.leave(peer(2).id)
    assert time.perf_counter() - start_s < 0.02  # removing so many takes ten times as long
    assert directory.holders(keys(range(5))) == [(peer(1).id, 3)]
    directory.tidy()
    assert len(directory._masks) == 3


def test_lookups_while_peers_come_and_go_name_only_who_was_there() -> None:
    directory = filled({1: 50})
    over = threading.Event()
    wrong: list[tuple[PeerId, int]] = []

    def look() -> None:
        while not over.is_set():
            found = directory.holders(keys(range(50)))
            wrong.extend(each for each in found if each[1] != 50 or not each[0])
            if (peer(1).id, 50) not in found:
                wrong.append((b"missing", 0))

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(2, 150):
        directory.join(peer(number))
        directory.snapshot(peer(number).id, 1, 0, pack(range(50)))
        directory.leave(peer(number - 1 if number > 2 else 99).id)
        directory.tidy()
    over.set()
    thread.join()
    assert wrong == []


def test_a_log_of_coming_and_going_does_not_grow_without_end() -> None:
    directory = filled({1: 0})
    for sequence in range(1, 51):
        now = pack(range(PIECE)) if sequence % 2 else b""
        gone = b"" if sequence % 2 else pack(range(PIECE))
        assert directory.delta(peer(1).id, 1, sequence, now, gone) is Effect.APPLIED
    assert len(directory._books[peer(1).id].log) <= 20 * PIECE


class AgainstModel(RuleBasedStateMachine):
    """Some peers, each a set of hints with a number; deltas in any order, lost and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.truth: dict[int, set[int]] = {}  # what each peer has
        self.sent: dict[int, list[tuple[bytes, bytes]]] = {}  # its deltas, from number 1
        self.known: dict[int, tuple[int, set[int]] | None] = {}  # what the directory is to know
        self.random = random.Random(1)

    numbers = st.integers(1, 4)
    hints = st.sets(st.integers(0, 30), max_size=8)

    @rule(number=numbers)
    def join(self, number: int) -> None:
        new = self.directory.join(peer(number))
        assert new == (number not in self.known)
        self.known.setdefault(number, None)
        self.truth.setdefault(number, set())
        self.sent.setdefault(number, [])

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        self.directory.leave(peer(number).id)
        self.known.pop(number, None)

    @rule(number=numbers, added=hints, removed=hints)
    def change(self, number: int, added: set[int], removed: set[int]) -> None:
        if number in self.truth:
            mine = self.truth[number]
            new, gone = added - removed - mine, removed & mine
            self.truth[number] = (mine | new) - gone
            self.sent[number].append((pack(new), pack(gone)))

    @rule(number=numbers)
    def snapshot(self, number: int) -> None:
        if number in self.truth:
            sequence, mine = len(self.sent[number]), self.truth[number]
            effect = self.directory.snapshot(peer(number).id, 1, sequence, pack(mine))
            assert effect is (Effect.APPLIED if number in self.known else Effect.STALE)
            if number in self.known:
                self.known[number] = (sequence, set(mine))

    @rule(number=numbers, ahead=st.sampled_from([1, 1, 1, 1, 2, 0, -1]))
    def deliver(self, number: int, ahead: int) -> None:
        at = self.known.get(number)
        sequence = (at[0] if at else 0) + ahead
        if not 1 <= sequence <= len(self.sent.get(number, [])):
            return
        added, removed = self.sent[number][sequence - 1]
        effect = self.directory.delta(peer(number).id, 1, sequence, added, removed)
        if number not in self.known:
            assert effect is Effect.STALE
        elif at is None:
            assert effect is Effect.GAP
        elif sequence == at[0] + 1:
            assert effect is Effect.APPLIED
            new = {int.from_bytes(added[i : i + 8], "little") for i in range(0, len(added), 8)}
            old = {int.from_bytes(removed[i : i + 8], "little") for i in range(0, len(removed), 8)}
            self.known[number] = (sequence, (at[1] | new) - old)
        else:
            assert effect is (Effect.STALE if sequence <= at[0] else Effect.GAP)

    @rule()
    def tidy(self) -> None:
        self.directory.tidy()
        held = [entries for at in self.known.values() if at for entries in at[1]]
        assert set(self.directory._masks) == set(held)

    @precondition(lambda self: self.known)
    @rule(asked=st.lists(st.integers(0, 30), min_size=1, max_size=1))
    def one_key(self, asked: list[int]) -> None:
        holders = {peer_id for peer_id, _ in self.directory.holders(keys(asked))}
        assert holders == {peer(n).id for n, at in self.known.items() if at and asked[0] in at[1]}

    @invariant()
    def summaries_are_those_of_the_model(self) -> None:
        for number, at in self.known.items():
            found = self.directory.summary(peer(number).id)
            if at is None:
                assert found is None
            else:
                xor = 0
                for each in at[1]:
                    xor ^= each
                assert found == Summary(at[0], len(at[1]), xor)


AgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstModel = AgainstModel.TestCase


@pytest.mark.parametrize("peers", [1, 8, 64, 128])
def test_a_lookup_of_a_thousand_blocks_takes_well_below_a_millisecond(peers: int) -> None:
    # The 100 us that were asked for are shown by benchmarks/peer_directory.py: here other
    # processes may take the core, so only what depends on the number of peers would be noticed.
    directory = filled(dict.fromkeys(range(peers), 700))
    asked = keys(range(1000))
    times: list[float] = []
    for _ in range(50):
        start_s = time.perf_counter()
        found = directory.holders(asked)
        times.append(time.perf_counter() - start_s)
        assert found[0][1] == 700
    assert min(times) < 200e-6
