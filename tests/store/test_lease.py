"""Leases: what they name, when they are over, and the book of those that are out."""

from kvbench.store.lease import Lease, LeaseBook

KEYS = (b"a" * 32, b"b" * 32)


def lease(ended: list[Lease], ttl_s: float = 30.0) -> Lease:
    return Lease(
        KEYS, ("dram", "nvme"), [(0, [3]), (1, [4])], owner="me", ttl_s=ttl_s, release=ended.append
    )


def test_a_lease_is_released_at_the_end_of_its_block() -> None:
    ended: list[Lease] = []
    with lease(ended) as mine:
        assert (len(mine), mine.keys, mine.tiers, mine.owner) == (2, KEYS, ("dram", "nvme"), "me")
        assert ended == []
    assert ended == [mine]


def test_a_lease_ends_once() -> None:
    book = LeaseBook(10)
    mine = lease([])
    book.add(mine)
    assert len(book) == 1
    assert book.remove(mine)
    assert not book.remove(mine)
    assert (len(book), book.all()) == (0, [])


def test_a_lease_that_never_went_out_cannot_end() -> None:
    book = LeaseBook(10)
    book.add(lease([]))
    assert not book.remove(lease([]))
    assert not book.remove(lease([], ttl_s=1.0))
    assert len(book) == 1


def test_those_whose_time_is_up_are_found_whatever_their_time_was() -> None:
    book = LeaseBook(10)
    short = [lease([], ttl_s=0.5) for _ in range(3)]
    long = [lease([], ttl_s=100.0) for _ in range(2)]
    for each in (short[0], long[0], short[1], long[1], short[2]):
        book.add(each)
    assert book.expired(short[0].expires_s - 0.1) == []
    over = book.expired(short[2].expires_s)
    assert over == short
    assert len(book) == 5  # they stay until they are removed
    for each in over:
        book.remove(each)
    assert book.expired(short[2].expires_s) == []
    assert book.expired(long[1].expires_s) == long
    assert book.all() == long


def test_the_one_that_expires_now_is_over() -> None:
    book = LeaseBook(10)
    mine = lease([])
    book.add(mine)
    assert book.expired(mine.expires_s) == [mine]
    book.remove(mine)
    assert book.expired(mine.expires_s) == []
