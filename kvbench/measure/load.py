"""A load: one case's work going on in a process of its own while another case is measured.

It runs before the other case warms up and until that has its last sample. Its rate is what it moved
from the end of that warm-up on: before, it had the machine to itself. It never outlives the run.
The work is that of `kvbench.measure.load_worker`; nothing here moves a byte, prints or writes a
file.
"""

import threading
import time
from typing import Self

import msgspec
import numpy as np

from kvbench.measure.child import Child
from kvbench.measure.load_worker import Moved, Said
from kvbench.measure.side import Side
from kvbench.measure.worker import Assignment, Estimate, Failure, Phase

MODULE = "kvbench.measure.load_worker"
LOAD_CODE = "load"  # reason code of a row whose load could not run, or did not run to the end
SILENT_S = 60.0  # a load that says nothing for so long is stuck
LAST_WORD_S = 10.0  # until it has told of the end of a window; a step of it may take its time
PATIENCE_S = 1.0  # how long one wait may be: a signal is looked at in between


class Load:
    """Context manager around the process; `follow` is told what the measuring worker says.

    `assignment` is the load's own; its plan's warm-up is that of the case that is measured.
    """

    def __init__(
        self, case_id: str, assignment: Assignment, side: Side | None, *, set_up_s: float
    ) -> None:
        self.bytes_per_s: float | None = None  # while the other case was measured
        self._id = case_id
        self._set_up_s = set_up_s
        self._warmup_s = assignment.plan.warmup_s
        self._child = Child(MODULE, msgspec.json.encode(assignment), assignment.scratch, side)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._changed = threading.Condition()
        self._moved: list[Moved] = []
        self._failure: Failure | None = None
        self._began_s: float | None = None

    def __enter__(self) -> Self:
        self._child.deadline_s = time.monotonic() + self._set_up_s
        self._child.__enter__()
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()
        self._listener.join(timeout=PATIENCE_S)  # it reads to the end of what is now ended
        self._child.__exit__()

    def wait_until_running(self) -> Failure | None:
        """Wait for its first bytes; why they do not come."""
        with self._changed:
            while self._failure is None and not (self._moved and self._moved[-1].bytes):
                self._changed.wait(PATIENCE_S)
            return self._failure

    def follow(self, message: Phase | Estimate) -> Failure | None:
        """Look whether it still runs; with the end of the measurement, take its rate and end it."""
        if self.bytes_per_s is not None:
            return None  # it has done its duty
        now_s = time.monotonic()
        if message == Phase("measure"):
            self._began_s = now_s + self._warmup_s
        elif message == Phase("verify") and self._began_s is not None:
            found = self._rate(self._began_s, now_s)
            if isinstance(found, Failure):
                return found
            self.bytes_per_s = found
            self._child.end()  # the data are checked without it
            return None
        with self._changed:
            return self._failure

    def _rate(self, began_s: float, ended_s: float) -> float | Failure:
        """Bytes per second between two moments."""
        if ended_s <= began_s:  # both words of the worker were read late, so neither tells when
            text = f"the rate of the load {self._id} is not known: this run was held up"
            return Failure("failed", LOAD_CODE, text)
        deadline_s = time.monotonic() + LAST_WORD_S
        with self._changed:
            while self._failure is None and self._moved[-1].at_s < ended_s:
                if time.monotonic() > deadline_s:
                    return self._ended(f"it has told nothing for {LAST_WORD_S:.0f} s")
                self._changed.wait(PATIENCE_S)
            if self._failure is not None:
                return self._failure
            times_s = [each.at_s for each in self._moved]
            totals = [each.bytes for each in self._moved]
        first, last = np.interp([began_s, ended_s], times_s, totals)
        if last <= first:
            return self._ended("it moved nothing while this was measured")
        return float(last - first) / (ended_s - began_s)

    def _listen(self) -> None:
        """Take in what it says, until it ends."""
        failure: Failure | None = None
        for line in self._child.lines():
            said = self._understood(line)
            if isinstance(said, Failure):
                failure = said
                break
            self._child.deadline_s = time.monotonic() + SILENT_S
            with self._changed:
                self._moved.append(said)
                self._changed.notify_all()
        phase = "load" if self._moved else "set up"
        failure = failure or self._ended(self._child.death(phase).text)
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def _understood(self, line: bytes | None) -> Moved | Failure:
        if line is None:
            silent_s = SILENT_S if self._moved else self._set_up_s
            return self._ended(f"it said nothing for {silent_s:.0f} s")
        try:
            said = msgspec.json.decode(line, type=Said)
        except msgspec.MsgspecError as error:  # a side of another version
            return self._ended(f"what it says has no meaning: {error}")
        if isinstance(said, Moved):
            return said
        if said.state == "skipped":
            return Failure(said.state, LOAD_CODE, f"its load cannot run: {said.text}")
        return self._ended(said.text)

    def _ended(self, why: str) -> Failure:
        return Failure("failed", LOAD_CODE, f"the load {self._id} ended: {why}")
