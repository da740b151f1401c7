"""The core of a connection: every split of the bytes, every message in every state, every claim."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.peer.messages import (
    GONE,
    HERE,
    MOST_KEYS,
    MOST_MESSAGE_BYTES,
    MOST_TAGS,
    Answer,
    AnyMessage,
    Ask,
    Place,
    Prove,
    Proven,
)
from kvbench.peer.model import PeerError, Reason
from kvbench.peer.protocol import (
    HEADER,
    MESSAGE,
    MOST_HELLO_BYTES,
    PAYLOAD,
    TRANSITIONS,
    Arrived,
    Blocks,
    Connection,
    Role,
    State,
    frame,
    most_keys,
)
from kvbench.store.block import MOST_PARTS, Layout
from tests.peer.protocol_ends import (
    EVERY,
    GOODBYE,
    HELLO,
    LAYOUT,
    PROVE,
    PROVEN,
    STATES,
    TAG,
    WELCOME,
    answer_of,
    ask_of,
    asker,
    asker_says,
    block_of,
    feed,
    holder,
    holder_says,
    open_pair,
    payload_of,
    rows_of,
)

Conversation = tuple[Callable[[], Connection], bytes, list[object]]


def started_asker() -> Connection:
    """It has said all that it will: what it hears decides."""
    end = asker()
    end.send(HELLO)
    return end


def hear_all(states: bytes, data: bytes, cuts: list[int], *, place: bool = False) -> list[object]:
    """What an asker makes of a holder's bytes, its Ask being sent after the Welcome."""
    end = started_asker()
    rows = rows_of(0 if place else len(states))
    welcome_ends = len(frame(WELCOME))
    proven_ends = welcome_ends + len(frame(PROVEN))
    heard: list[object] = []
    for first, last in ((0, welcome_ends), (welcome_ends, proven_ends), (proven_ends, len(data))):
        if first == welcome_ends:
            end.prove(PROVE, PROVEN.proof)
        elif first == proven_ends:
            end.ask(ask_of(len(states), place=place), list(rows))
        inside = [cut - first for cut in cuts if first <= cut < last]
        heard += feed(end, data[first:last], inside)
    arrived = [i for event in heard if isinstance(event, Arrived) for i in event.indexes]
    for i, row in enumerate(rows):
        wanted = block_of(i) if i in arrived else rows_of(1)[0]
        assert (row == wanted).all(), f"row {i}"
    assert end.state is State.CLOSED
    return [event for event in heard if not isinstance(event, Arrived)] + [arrived]


def hear_asker(data: bytes, cuts: list[int], states: bytes, *, place: bool = False) -> list[object]:
    """What a holder makes of an asker's bytes; it answers when it is asked."""
    end = holder()
    hello_ends = len(frame(HELLO))
    heard: list[object] = list(feed(end, data[:hello_ends], [c for c in cuts if c < hello_ends]))
    end.send(WELCOME)
    ends = hello_ends + len(frame(PROVE))
    heard += feed(
        end, data[hello_ends:ends], [c - hello_ends for c in cuts if hello_ends <= c < ends]
    )
    end.send(PROVEN)
    heard += feed(end, data[ends:], [c - ends for c in cuts if c >= ends])
    end.send(answer_of(states, place=place))
    return [*heard, end.state]


@pytest.mark.parametrize("place", [False, True])
@pytest.mark.parametrize(
    "states", [STATES, bytes((GONE, GONE)), bytes((HERE,)), bytes((HERE, HERE, GONE))]
)
def test_what_the_asker_hears_does_not_depend_on_how_the_bytes_are_split(
    states: bytes, place: bool
) -> None:
    data = holder_says(states, place=place)
    here = [] if place else [i for i, state in enumerate(states) if state == HERE]
    whole = [WELCOME, PROVEN, answer_of(states, place=place), GOODBYE, here]
    assert hear_all(states, data, list(range(1, len(data))), place=place) == whole
    for cut in range(1, len(data)):
        assert hear_all(states, data, [cut], place=place) == whole, f"cut at {cut}"


def test_what_the_holder_hears_does_not_depend_on_how_the_bytes_are_split() -> None:
    data = b"".join(asker_says(len(STATES)))
    whole = [HELLO, PROVE, ask_of(len(STATES)), State.PAYLOAD]
    assert hear_asker(data, list(range(1, len(data))), STATES) == whole
    for cut in range(1, len(data)):
        assert hear_asker(data, [cut], STATES) == whole, f"cut at {cut}"


@given(st.lists(st.integers(1, 1900), max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_split_of_a_payload_brings_the_blocks_that_are_here(cuts: list[int]) -> None:
    data = holder_says(STATES)
    cuts = [cut for cut in cuts if cut < len(data)]
    assert hear_all(STATES, data, cuts)[-1] == [0, 2, 4]


def test_blocks_are_received_in_the_callers_own_memory() -> None:
    one, two = open_pair()
    rows = rows_of(3)
    feed(two, one.ask(ask_of(3), list(rows)))
    feed(one, two.send(answer_of(bytes((HERE, GONE, HERE)))))
    views = one.buffers(10**6)
    assert [len(view) for view in views] == [LAYOUT.block_bytes] * 2
    for view, at in zip(views, (0, 2), strict=True):
        assert np.shares_memory(np.frombuffer(view, np.uint8), rows[at])
    assert len(one.buffers(1)) == 1
    assert not np.shares_memory(np.frombuffer(views[0], np.uint8), rows[1])


# Every message in every state.


def in_state(role: Role, state: State) -> Connection:
    """An end that got there by the rules."""
    if state is State.START:
        return asker() if role is Role.ASKER else holder()
    one, two = asker(), holder()
    feed(two, one.send(HELLO))
    if state is not State.GREETED:
        feed(one, two.send(WELCOME))
        feed(two, one.prove(PROVE, PROVEN.proof))
    if state not in (State.GREETED, State.PROVING):
        feed(one, two.send(PROVEN))
    if state in (State.ASKED, State.PAYLOAD):
        feed(two, one.ask(ask_of(2), list(rows_of(2))))
    if state is State.PAYLOAD:
        two.send(answer_of(bytes((HERE, GONE))))
        feed(one, frame(answer_of(bytes((HERE, GONE)))))  # and not the payload's header
    if state is State.CLOSED:
        feed(two, one.send(GOODBYE))
    end = one if role is Role.ASKER else two
    assert end.state is state
    return end


def target_of(role: Role, state: State, message: AnyMessage) -> State | None:
    return TRANSITIONS.get((state, role, type(message)))


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("role", list(Role))
def test_only_what_the_table_says_may_be_sent(
    role: Role, message: AnyMessage, state: State
) -> None:
    end = in_state(role, state)
    after = target_of(role, state, message)
    rows = list(rows_of(2))
    if after is None:
        with pytest.raises(PeerError):
            end.ask(message, rows) if isinstance(message, Ask) else end.send(message)
        assert end.state is State.CLOSED
    else:
        data = end.ask(message, rows) if isinstance(message, Ask) else end.send(message)
        assert data.startswith(frame(message))
        assert end.state is after


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("role", list(Role))
def test_only_what_the_table_says_may_be_received(
    role: Role, message: AnyMessage, state: State
) -> None:
    end = in_state(role, state)
    other = Role.HOLDER if role is Role.ASKER else Role.ASKER
    after = target_of(other, state, message)
    if role is Role.ASKER and state is State.PAYLOAD:
        after = None  # a message within a payload
    if after is None:
        with pytest.raises(PeerError):
            feed(end, frame(message))
        assert end.state is State.CLOSED
    else:
        assert feed(end, frame(message)) == [message]
        assert end.state is after


def test_the_table_names_only_ways_that_lead_on() -> None:
    assert {state for state, _, _ in TRANSITIONS} == set(State) - {State.CLOSED}
    assert set(TRANSITIONS.values()) == set(State) - {State.START}
    assert {what for _, _, what in TRANSITIONS} == {type(each) for each in EVERY} | {Blocks}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("state", list(State))
def test_a_payload_may_come_only_when_one_is_owed(role: Role, state: State) -> None:
    end = in_state(role, state)
    if role is Role.ASKER and state is State.PAYLOAD:
        assert feed(end, HEADER.pack(PAYLOAD, 0, 0, LAYOUT.block_bytes)) == []
        assert end.state is State.PAYLOAD
        return
    with pytest.raises(PeerError):
        feed(end, HEADER.pack(PAYLOAD, 0, 0, LAYOUT.block_bytes))
    assert end.state is State.CLOSED


def test_the_next_ask_waits_for_the_blocks_of_the_last() -> None:
    one, two = open_pair()
    feed(two, one.ask(ask_of(1), list(rows_of(1))))
    feed(one, two.send(answer_of(bytes((HERE,)))))
    feed(one, payload_of(bytes((HERE,))))
    two.payload_sent()
    feed(two, one.ask(ask_of(2, number=2), list(rows_of(2))))
    assert (one.state, two.state) == (State.ASKED, State.ASKED)
    with pytest.raises(PeerError, match="a Ask of the asker in state asked"):
        feed(two, frame(ask_of(2, number=3)))


def test_a_payload_that_nobody_asked_for_cannot_be_sent() -> None:
    _, two = open_pair()
    with pytest.raises(PeerError):
        two.payload_sent()
    assert two.state is State.CLOSED


# Claims.


def refused(end: Connection, data: bytes, text: str) -> None:
    """The data is a violation; the end is closed, and stays so."""
    with pytest.raises(PeerError, match=text) as caught:
        feed(end, data)
    assert caught.value.reason is Reason.REFUSED
    assert end.state is State.CLOSED
    with pytest.raises(PeerError):
        end.buffer()
    with pytest.raises(PeerError):
        end.received(1)
    with pytest.raises(PeerError):
        end.send(GOODBYE)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(0, 0, 0, 8),
        HEADER.pack(3, 0, 0, 8),
        HEADER.pack(MESSAGE, 1, 0, 8),
        HEADER.pack(MESSAGE, 0, 1, 8),
        b"GET / HTTP/1.1\r\n"[: HEADER.size],
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
)
def test_a_header_that_is_none_is_refused(role: Role, header: bytes) -> None:
    refused(in_state(role, State.OPEN), header, "no frame")


@pytest.mark.parametrize(
    ("role", "state", "size"),
    [
        (Role.HOLDER, State.START, MOST_HELLO_BYTES + 1),
        (Role.HOLDER, State.OPEN, MOST_MESSAGE_BYTES),
        (Role.HOLDER, State.OPEN, 2**32 - 1),
        (Role.ASKER, State.GREETED, MOST_MESSAGE_BYTES + 1),
        (Role.ASKER, State.ASKED, 2**32 - 1),
        (Role.ASKER, State.ASKED, 0),
    ],
)
def test_a_length_is_refused_before_there_is_memory_for_it(
    role: Role, state: State, size: int
) -> None:
    refused(in_state(role, state), HEADER.pack(MESSAGE, 0, 0, size), "a message of")


def test_a_stranger_gets_a_few_bytes_of_memory_and_no_more() -> None:
    end = holder()
    assert len(end.buffer()) == HEADER.size
    feed(end, HEADER.pack(MESSAGE, 0, 0, MOST_HELLO_BYTES))
    assert len(end.buffer()) == MOST_HELLO_BYTES


@pytest.mark.parametrize("size", [LAYOUT.block_bytes - 1, LAYOUT.block_bytes + 1, 0, 2**32 - 1])
def test_a_payload_of_another_length_than_announced_is_refused(size: int) -> None:
    refused(in_state(Role.ASKER, State.PAYLOAD), HEADER.pack(PAYLOAD, 0, 0, size), "a payload of")


def sums(count: int, parts: int = LAYOUT.parts) -> list[bytes]:
    return [bytes(8 * parts)] * count


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (answer_of(bytes((HERE, GONE)), number=2), "an Answer to 2"),
        (answer_of(bytes((HERE,))), "1 states to an Ask of 2 keys"),
        (answer_of(bytes((HERE, GONE, GONE))), "3 states to an Ask of 2 keys"),
        (Answer(1, bytes((HERE, 9)), ["dram"], sums(1), []), "unknown state"),
        (Answer(1, bytes((HERE, HERE)), ["dram"], sums(1), []), "lists"),
        (Answer(1, bytes((HERE, GONE)), ["dram"], sums(1), [Place(0)]), "lists"),
        (Answer(1, bytes((HERE, GONE)), ["dram"], sums(1, parts=1), []), "checksums"),
        (Answer(1, bytes((HERE, GONE)), ["dram"], sums(1, parts=3), []), "checksums"),
    ],
)
def test_an_answer_to_something_else_than_was_asked_is_refused(answer: Answer, text: str) -> None:
    refused(in_state(Role.ASKER, State.ASKED), frame(answer), text)


def test_an_answer_without_the_places_that_were_asked_for_is_refused() -> None:
    one, _ = open_pair()
    one.ask(ask_of(2, place=True), [])
    refused(one, frame(answer_of(bytes((HERE, GONE)))), "lists")


def test_places_come_without_a_payload() -> None:
    one, two = open_pair()
    feed(two, one.ask(ask_of(2, place=True), []))
    answer = answer_of(bytes((HERE, HERE)), place=True)
    assert feed(one, two.send(answer)) == [answer]
    assert (one.state, two.state) == (State.OPEN, State.OPEN)


def test_an_ask_of_a_namespace_that_was_not_proven_is_refused() -> None:
    one, two = asker(), holder()
    feed(two, one.send(HELLO))
    feed(one, two.send(WELCOME))
    refused(two, frame(ask_of(1)), "not proven")
    with pytest.raises(PeerError, match="not proven"):
        one.ask(ask_of(1), list(rows_of(1)))


def test_a_wrong_proof_ends_the_connection_and_does_not_say_what_was_wrong() -> None:
    _, two = open_pair()
    refused(two, frame(Prove(TAG, b"w" * 32)), "no such namespace, or a wrong proof")
    _, two = open_pair()
    refused(two, frame(Prove(b"u" * 16, PROVE.proof)), "no such namespace, or a wrong proof")


def proving(wanted: bytes = PROVEN.proof) -> Connection:
    one = started_asker()
    feed(one, frame(WELCOME))
    one.prove(PROVE, wanted)
    return one


def test_no_key_is_asked_for_before_the_holder_has_proven_the_namespace_too() -> None:
    with pytest.raises(PeerError, match="a Ask of the asker in state proving"):
        proving().ask(ask_of(1), list(rows_of(1)))
    refused(proving(), frame(answer_of(bytes((HERE,)))), "a Answer of the holder in state proving")


def test_a_wrong_proof_of_the_holder_ends_the_connection() -> None:
    wrong = "the holder did not prove"
    refused(proving(), frame(Proven(TAG, PROVE.proof)), wrong)
    refused(proving(b""), frame(PROVEN), wrong)
    refused(proving(), frame(Proven(b"u" * 16, PROVEN.proof)), "a Proven of another namespace")


def test_a_holder_without_a_judge_accepts_no_proof() -> None:
    end = Connection(Role.HOLDER, LAYOUT)
    feed(end, frame(HELLO))
    end.send(WELCOME)
    refused(end, frame(PROVE), "wrong proof")


def test_no_more_namespaces_are_proven_than_a_peer_may_have() -> None:
    end = Connection(Role.HOLDER, LAYOUT, lambda _prove: True)
    feed(end, frame(HELLO))
    end.send(WELCOME)
    for number in range(MOST_TAGS):
        feed(end, frame(Prove(bytes([number]) * 16, b"p" * 32)))
        end.send(Proven(bytes([number]) * 16, b"q" * 32))
    feed(end, frame(Prove(bytes([0]) * 16, b"p" * 32)))  # once more is no more
    end.send(Proven(bytes([0]) * 16, b"q" * 32))
    refused(end, frame(Prove(bytes([255]) * 16, b"p" * 32)), "more than")


@pytest.mark.parametrize("parts", [1, 2, 100, MOST_PARTS])
def test_every_answer_that_may_be_asked_for_fits_into_a_message(parts: int) -> None:
    layout = Layout(parts * 8, parts)
    count = most_keys(layout)
    assert 1 <= count <= MOST_KEYS
    largest = 2**63 - 1
    answer = Answer(
        largest,
        bytes(count),
        ["x" * 16] * count,
        sums(count, parts),
        [Place(largest)] * count,
        largest,
        3_600_000,
    )
    assert len(frame(answer)) <= MOST_MESSAGE_BYTES + HEADER.size


def test_more_keys_than_an_answer_has_room_for_are_refused() -> None:
    layout = Layout(MOST_PARTS * 8, MOST_PARTS)
    end = Connection(Role.HOLDER, layout, lambda _prove: True)
    feed(end, frame(HELLO))
    end.send(WELCOME)
    feed(end, frame(PROVE))
    end.send(PROVEN)
    refused(end, frame(ask_of(most_keys(layout) + 1)), "an Ask of")


@pytest.mark.parametrize("wrong", ["few", "short", "long", "readonly"])
def test_targets_that_do_not_fit_are_the_callers_mistake(wrong: str) -> None:
    one, _ = open_pair()
    rows = list(rows_of(2))
    if wrong == "few":
        rows = rows[:1]
    elif wrong == "short":
        rows[1] = rows[1][:-1]
    elif wrong == "long":
        rows[1] = np.zeros(LAYOUT.block_bytes + 1, np.uint8)
    else:
        rows[1].flags.writeable = False
    with pytest.raises(ValueError, match="target"):
        one.ask(ask_of(2), rows)
    assert one.state is State.OPEN


# Ends.


def test_a_peer_that_closes_is_unreachable_and_the_error_says_where() -> None:
    for state in set(State) - {State.CLOSED}:
        end = in_state(Role.ASKER, state)
        with pytest.raises(PeerError, match=f"the holder closed .*{state.value}") as caught:
            end.received(0)
        assert caught.value.reason is Reason.UNREACHABLE
        assert end.state is State.CLOSED


def test_a_peer_that_closes_within_a_frame_is_told_from_one_that_closes_between() -> None:
    for data in (frame(WELCOME)[:3], frame(WELCOME)[:8], frame(WELCOME)[:20]):
        end = started_asker()
        feed(end, data)
        with pytest.raises(PeerError, match="within a frame"):
            end.received(0)
    with pytest.raises(PeerError) as caught:
        started_asker().received(0)
    assert "within" not in str(caught.value)


def test_the_alert_of_a_tls_port_is_no_peer() -> None:
    end = started_asker()
    feed(end, b"\x15\x03\x03\x00\x02\x02\x46")
    with pytest.raises(PeerError, match="no kvbench peer") as caught:
        end.received(0)
    assert caught.value.reason is Reason.REFUSED


@given(st.sampled_from(list(Role)), st.sampled_from(list(State)), st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_events_or_one_kind_of_error(role: Role, state: State, data: bytes) -> None:
    end = in_state(role, state)
    try:
        feed(end, data)
    except PeerError:
        assert end.state is State.CLOSED


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_spoilt_conversation_is_events_or_one_kind_of_error(data: st.DataObject) -> None:
    said = bytearray(holder_says(STATES))
    at = data.draw(st.integers(0, len(said) - 1))
    said[at] ^= data.draw(st.integers(1, 255))
    end = started_asker()
    rows = rows_of(len(STATES))
    welcome_ends = len(frame(WELCOME))
    try:
        feed(end, bytes(said[:welcome_ends]))
        proven_ends = welcome_ends + len(frame(PROVEN))
        end.prove(PROVE, PROVEN.proof)
        feed(end, bytes(said[welcome_ends:proven_ends]))
        end.ask(ask_of(len(STATES)), list(rows))
        feed(end, bytes(said[proven_ends:]))
    except PeerError:
        assert end.state is State.CLOSED
    assert (rows[[1, 3]] == 0xEE).all()  # what is not here is never written to
