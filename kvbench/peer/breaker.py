"""Whether a peer is to be asked, after what it did lately. Pure: the clock is passed in.

One failure opens the breaker. While it is open nobody waits for the peer: after a pause that
doubles, one probe (a connection, which no caller waits for) is to find out whether it is back.
Who probes, and what a failure is, is for `kvbench.peer.lines`. Not thread-safe: the caller locks.

May import nothing of kvbench.
"""

import enum

PAUSE_S = 1.0
MOST_PAUSE_S = 30.0
MOST_DAMAGED = 3  # pulls in a row in which a block was corrupt: its memory or its way is bad
LEAST_PATIENCE_S = 0.02  # who is silent for less may just have been held up by our own scheduler


class State(enum.Enum):
    """Of one peer."""

    CLOSED = "closed"  # asked, as usual
    OPEN = "open"  # left alone
    PROBING = "probing"  # left alone, but for one probe that is under way


class Event(enum.Enum):
    """What changes the state."""

    FAILED = "failed"
    ANSWERED = "answered"  # with a block, or that it has none
    PROBED = "probed"  # a probe has begun
    REACHED = "reached"  # the probe found the peer there


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.CLOSED: {
        Event.FAILED: State.OPEN,
        Event.ANSWERED: State.CLOSED,
        Event.REACHED: State.CLOSED,  # a pull that was under way has answered before the probe
    },
    State.OPEN: {
        Event.FAILED: State.OPEN,  # what was under way when it opened
        Event.ANSWERED: State.CLOSED,
        Event.PROBED: State.PROBING,
        Event.REACHED: State.CLOSED,
    },
    State.PROBING: {
        Event.FAILED: State.OPEN,
        Event.ANSWERED: State.CLOSED,
        Event.REACHED: State.CLOSED,
    },
}


class Breaker:
    """The state of one peer, and until when it is left alone.

    Only an answer makes the pause short again: a peer that can be connected to and never answers is
    asked more and more seldom.
    """

    def __init__(self, pause_s: float = PAUSE_S, most_pause_s: float = MOST_PAUSE_S) -> None:
        self.state = State.CLOSED
        self.opened = 0  # how often it has
        self._first_s = pause_s
        self._most_s = most_pause_s
        self._pause_s = pause_s  # of the next time that it opens
        self._until_s = 0.0
        self._silent_s = 0.0  # what pulls have waited for nothing since the last answer
        self._damaged = 0

    @property
    def closed(self) -> bool:
        """Whether the peer may be asked."""
        return self.state is State.CLOSED

    def due(self, now_s: float) -> bool:
        """Whether it is time for a probe."""
        return self.state is State.OPEN and now_s >= self._until_s

    def probe(self) -> None:
        """A probe begins; `reached` or `failed` has to follow."""
        self._advance(Event.PROBED)

    def reached(self) -> None:
        """The probe found the peer."""
        self._silent_s = 0.0
        self._damaged = 0
        self._advance(Event.REACHED)

    def answered(self) -> None:
        """It sent a block, or said that it has none."""
        self._pause_s = self._first_s
        self._silent_s = 0.0
        self._damaged = 0
        self._advance(Event.ANSWERED)

    def failed(self, now_s: float) -> None:
        """It broke, refused, or could not be reached."""
        if self.state is not State.OPEN:
            self.opened += 1
            self._until_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._most_s)
        self._advance(Event.FAILED)

    def late(self, now_s: float, waited_s: float, expected_s: float) -> None:
        """Nothing arrived in `waited_s`, where a pull should have taken `expected_s`.

        Not every pull that is late is the peer's fault: a caller may have had no time. It has
        failed once pulls have waited in vain for twice as long as one takes.
        """
        self._silent_s += waited_s
        if self._silent_s >= max(LEAST_PATIENCE_S, 2 * expected_s):
            self.failed(now_s)

    def damaged(self, now_s: float) -> None:
        """A block came that is not what its checksum says."""
        self._damaged += 1
        if self._damaged >= MOST_DAMAGED:
            self.failed(now_s)

    def _advance(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state][event]
