"""Which keys are asked of whom, and what becomes of them: against rules told key by key."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.peer.breaker import Breaker
from kvbench.peer.ledger import Holder, Ledger
from kvbench.peer.lines import Line
from kvbench.peer.model import Peer

KEYS = 4  # few, so that hedges and failures meet
LINES = [
    Line(
        Peer(
            id=bytes([number] * 16),
            name=f"peer {number}",
            epoch=1,
            block_bytes=4096,
            parts=1,
            namespaces=(),
            host="here",
            endpoints={},
            capacities={},
        ),
        Breaker(),
    )
    for number in range(3)
]
RANGES = st.just([range(KEYS)]) | st.lists(
    st.tuples(st.integers(0, KEYS), st.integers(0, KEYS)).map(lambda ends: range(*sorted(ends))),
    min_size=1,
    max_size=2,
)


@dataclass
class Rules:
    """The same by what the words say, key by key."""

    holders: list[Holder]
    open: set[int]
    out: list[int] = field(default_factory=lambda: [0] * KEYS)
    taken: set[int] = field(default_factory=set[int])
    tried: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])

    def may(self, who: int, key: int) -> bool:
        has = any(key in each for each in self.holders[who].ranges)
        return has and (who, key) not in self.tried

    def able(self, who: int) -> list[int]:
        return sorted(key for key in self.open if self.may(who, key))


@settings(max_examples=60, deadline=None)
@given(st.lists(RANGES, min_size=1, max_size=3), st.sampled_from([0, 1, 3, 4, 4]), st.data())
def test_every_key_is_asked_delivered_and_lost_by_the_rules(
    known: list[list[range]], reach: int, data: st.DataObject
) -> None:
    holders = [Holder(line, 1.0, list(ranges)) for line, ranges in zip(LINES, known, strict=False)]
    ledger, rules = Ledger(KEYS, reach), Rules(holders, set(range(reach)))
    pulls: list[list[int]] = []  # under way
    for _ in range(data.draw(st.integers(1, 30))):
        who = data.draw(st.integers(0, len(holders) - 1))
        step = data.draw(st.sampled_from(["take", "end", "hedge", "lose"]))
        if step == "take":
            mine, hedge = ledger.take(holders[who], most := data.draw(st.integers(1, KEYS)))
            assert mine == rules.able(who)[:most]
            assert hedge == any(rules.out[key] for key in mine)
            rules.open -= set(mine)
            rules.tried |= {(who, key) for key in mine}
            for key in mine:
                rules.out[key] += 1
            pulls.append(mine)
        elif step == "end" and pulls:
            mine = pulls.pop(data.draw(st.integers(0, len(pulls) - 1)))
            good = [key for key in mine if data.draw(st.booleans())]
            bad = [key for key in mine if key not in good]
            for key in mine:
                rules.out[key] -= 1
            ledger.failed(bad)
            rules.open |= {key for key in bad if not rules.out[key] and key not in rules.taken}
            fresh = ledger.deliver(good)
            assert fresh == [key for key in good if key not in rules.taken]
            rules.taken |= set(good)
            rules.open -= set(good)
        elif step == "hedge" and pulls:
            mine = pulls[data.draw(st.integers(0, len(pulls) - 1))]
            more = {
                key
                for key in mine
                if key not in rules.taken | rules.open
                and any(rules.may(each, key) for each in range(len(holders)))
            }
            assert ledger.again(mine, holders) == bool(more)
            rules.open |= more
        elif step == "lose":
            asked = data.draw(st.lists(st.sampled_from(range(len(holders))), unique=True))
            lost = sorted(
                key
                for key in rules.open
                if not rules.out[key] and not any(rules.may(each, key) for each in asked)
            )
            assert ledger.lost([holders[each] for each in asked]) == lost
            rules.open -= set(lost)
        assert ledger.open == sorted(rules.open)
        assert ledger.under_way() == any(rules.out[key] for key in rules.open)
        assert [ledger.able(each) for each in holders] == [
            rules.able(each) for each in range(len(holders))
        ]


def test_a_key_that_two_pulls_were_for_is_delivered_once_and_failed_by_both_before_it_is_open() -> (
    None
):
    first, second = (Holder(line, 1.0, [range(3)]) for line in LINES[:2])
    ledger = Ledger(3, 3)
    assert ledger.take(first, 3) == ([0, 1, 2], False)
    assert ledger.again([0, 1, 2], [first, second])
    assert ledger.take(second, 3) == ([0, 1, 2], True)
    ledger.failed([1, 2])
    assert ledger.open == []  # the other may still bring them
    assert ledger.deliver([0]) == [0]
    assert not ledger.again([0], [Holder(LINES[2], 1.0, [range(3)])])
    assert ledger.deliver([0, 1]) == [1]
    ledger.failed([2])
    assert ledger.open == [2]
    assert ledger.lost([first, second]) == [2]
