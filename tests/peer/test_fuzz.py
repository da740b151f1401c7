"""The seeds that are kept, run again; `scripts/fuzz_peer` runs a million others."""

from collections import Counter
from pathlib import Path

import pytest

from kvbench.peer.protocol import Connection, Event
from tests.peer import fuzzing

SEEDS = Path(__file__).with_name("fuzz_seeds.txt")


def kept() -> list[tuple[int, int]]:
    """First seeds, and how many."""
    lines = [line.partition("#")[0].split() for line in SEEDS.read_text().splitlines()]
    return [(int(line[0]), int(line[1]) if line[1:] else 1) for line in lines if line]


def test_malformed_bytes_are_events_or_a_peer_error_and_nothing_else() -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    for first, count in kept():
        more, wrong, grown_bytes = fuzzing.some(first, count)
        assert wrong == []
        assert grown_bytes < fuzzing.GROWN_BYTES
        outcomes += more
    assert sum(outcomes.values()) >= 20_000
    # The cases get everywhere: each kind says things that are heard and things that are refused.
    for say in fuzzing.SAY:
        seen = {outcome for name, outcome in outcomes if name == say.__name__}
        assert any(outcome.startswith("events") for outcome in seen), say.__name__
        assert len(seen) >= 5, say.__name__
    assert len({outcome for _, outcome in outcomes}) >= 20


def test_the_fuzzer_finds_a_core_that_raises_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Connection.received

    def careless(self: Connection, size: int) -> list[Event]:
        if bytes(self.buffer()[:1]) == b"\x03":
            raise IndexError("as if a header were believed")
        return whole(self, size)

    monkeypatch.setattr(Connection, "received", careless)
    _, wrong, _ = fuzzing.some(0, 300)
    assert wrong
    assert all("IndexError" in each for each in wrong)
